"""One suite for every kind of index, against brute force in NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

from ragserve.errors import InvalidInputError
from retriever_svc.index import FaissIndex, Index, IndexSpec, SearchOptions
from retriever_svc.index.milvus_index import MilvusIndex
from retriever_svc.ranking import find_nearest
from tests.retriever_svc.index.sources import ArraySource, clustered

SIZE, DIMENSION, K = 2000, 32, 10
VECTORS = clustered(SIZE, DIMENSION)
QUERIES = clustered(24, DIMENSION, seed=1)


@dataclass(frozen=True)
class Kind:
    """A kind of index, the share of the true nearest it must find, and how far off its scores may be."""

    name: str
    spec: IndexSpec
    recall: float
    error: float
    parameter: str = ""
    milvus: bool = False


def kind(
    name: str,
    factory: str,
    recall: float,
    error: float,
    parameter: str = "",
    *,
    milvus: bool = False,
    **changes: object,
) -> Kind:
    spec = IndexSpec(factory, device="cpu", build_threads=1, **changes)
    return Kind(name, spec, recall, error, parameter, milvus)


KINDS = [
    kind("Flat", "Flat", 1.0, 1e-5),
    kind("Flat float16", "Flat", 0.98, 2e-3, precision="float16"),
    kind("HNSW", "HNSW32", 0.95, 1e-5, "ef_search", search_parameters="efSearch=128"),
    kind("HNSW float16", "HNSW32", 0.95, 2e-3, "ef_search", search_parameters="efSearch=128", precision="float16"),
    kind("IVF", "IVF16,Flat", 0.9, 1e-5, "nprobe", search_parameters="nprobe=12"),
    kind("IVF float16", "IVF16,Flat", 0.9, 2e-3, "nprobe", search_parameters="nprobe=12", precision="float16"),
    kind("IVF-PQ", "IVF16,PQ16x4", 0.5, 0.5, "nprobe", search_parameters="nprobe=16"),
    kind("OPQ IVF-PQ", "OPQ4,IVF16,PQ16x4", 0.5, 0.5, "nprobe", search_parameters="nprobe=16", training_vectors=700),
    kind("PQ", "PQ16x4", 0.5, 0.5),
    kind("Milvus Flat", "Flat", 1.0, 1e-5, milvus=True),
    kind("Milvus HNSW", "HNSW16", 0.95, 1e-5, "ef_search", milvus=True, search_parameters="efSearch=128"),
    kind("Milvus IVF", "IVF16,Flat", 0.9, 1e-5, "nprobe", milvus=True, search_parameters="nprobe=12"),
]


@pytest.fixture(scope="module", params=KINDS, ids=lambda each: each.name)
def built(request: pytest.FixtureRequest) -> Iterator[tuple[Kind, Index]]:
    each: Kind = request.param
    index: Index
    if each.milvus:
        uri = request.getfixturevalue("milvus").uri
        index = MilvusIndex.build(ArraySource(VECTORS), each.spec, uri=uri, content="kinds")
    else:
        index = FaissIndex.build(ArraySource(VECTORS), each.spec)
    yield each, index
    index.close()


def true_scores() -> np.ndarray:
    return QUERIES.astype(np.float64) @ VECTORS.T.astype(np.float64)


def best(scores: np.ndarray, n: int) -> np.ndarray:
    return np.argsort(-scores, axis=1, kind="stable")[:, :n]


def recall(found: np.ndarray, expected: np.ndarray) -> float:
    hits = [len(set(row.tolist()) & set(true.tolist())) for row, true in zip(found, expected, strict=True)]
    return sum(hits) / expected.size


MASKS = {
    "all but a few": np.arange(SIZE) % 97 != 5,
    "half": np.random.default_rng(2).random(SIZE) < 0.5,
    "a twentieth": np.random.default_rng(3).random(SIZE) < 0.05,
    "the first third": np.arange(SIZE) < SIZE // 3,
}


def test_says_what_it_is(built: tuple[Kind, Index]) -> None:
    each, index = built
    assert (index.size, index.dimension) == (SIZE, DIMENSION)
    assert index.exact == each.name.endswith("Flat")


def test_finds_the_nearest(built: tuple[Kind, Index]) -> None:
    each, index = built
    scores, positions = index.search(QUERIES, K)
    assert scores.shape == positions.shape == (len(QUERIES), K)
    assert (scores.dtype, positions.dtype) == (np.float32, np.int64)
    assert (positions >= 0).all()
    assert (scores[:, 1:] <= scores[:, :-1]).all()
    assert recall(positions, best(true_scores(), K)) >= each.recall
    np.testing.assert_allclose(scores, np.take_along_axis(true_scores(), positions, 1), atol=each.error)


@pytest.mark.parametrize("mask", MASKS)
def test_finds_the_nearest_that_are_allowed(built: tuple[Kind, Index], mask: str) -> None:
    each, index = built
    allowed = MASKS[mask]
    scores, positions = index.search(QUERIES, K, SearchOptions(allowed=allowed))
    assert allowed[positions[positions >= 0]].all()
    assert (np.sort(positions, axis=1)[:, 1:] != np.sort(positions, axis=1)[:, :-1])[positions.min(1) >= 0].all()
    assert (scores[:, 1:] <= scores[:, :-1]).all()
    masked = np.where(allowed, true_scores(), -np.inf)
    assert recall(positions, best(masked, K)) >= each.recall
    found = positions >= 0
    np.testing.assert_allclose(
        scores[found], np.take_along_axis(true_scores(), np.maximum(positions, 0), 1)[found], atol=each.error
    )


def test_the_same_index_answers_with_and_without_masks_in_turn(built: tuple[Kind, Index]) -> None:
    _, index = built
    before = index.search(QUERIES, K)
    index.search(QUERIES, K, SearchOptions(allowed=MASKS["half"]))
    after = index.search(QUERIES, K)
    np.testing.assert_array_equal(before[1], after[1])


def test_an_empty_mask_finds_nothing(built: tuple[Kind, Index]) -> None:
    _, index = built
    _, positions = index.search(QUERIES, K, SearchOptions(allowed=np.zeros(SIZE, bool)))
    assert (positions == -1).all()


def test_asking_for_more_than_there_is_ends_in_minus_one(built: tuple[Kind, Index]) -> None:
    each, index = built
    allowed = np.arange(SIZE) < 7
    _, positions = index.search(QUERIES, K, SearchOptions(allowed=allowed))
    assert (positions[:, 7:] == -1).all()
    if not each.parameter:  # the others look at a part only
        assert (np.sort(positions[:, :7], axis=1) == np.arange(7)).all()


def test_looks_further_when_asked_to(built: tuple[Kind, Index]) -> None:
    each, index = built
    if not each.parameter:
        pytest.skip("no such parameter")
    little, much = (SearchOptions(**{each.parameter: value}) for value in (1, 512))
    index.check_options(much)
    expected = best(true_scores(), K)
    found = [recall(index.search(QUERIES, K, options)[1], expected) for options in (little, much)]
    assert found[0] < found[1]
    np.testing.assert_array_equal(index.search(QUERIES, K)[1], index.search(QUERIES, K, SearchOptions())[1])


@pytest.mark.parametrize("name", ["nprobe", "ef_search"])
def test_parameters_are_checked(built: tuple[Kind, Index], name: str) -> None:
    each, index = built
    for value in (-1, 100_000, *(() if name == each.parameter else (5,))):
        with pytest.raises(InvalidInputError, match=name) as caught:
            index.check_options(SearchOptions(**{name: value}))
        assert caught.value.field == name


@pytest.mark.parametrize(("factory", "exact"), [("PQ16x4", False), ("Flat", True)])
def test_candidates_ranked_by_their_true_vectors(factory: str, exact: bool) -> None:
    source, expected = ArraySource(VECTORS), best(true_scores(), K)

    def found(refine_factor: float) -> float:
        spec = IndexSpec(factory, device="cpu", build_threads=1, refine_factor=refine_factor)
        index = FaissIndex.build(source, spec)
        assert index.refine_factor == (1.0 if exact else refine_factor)
        nearest = find_nearest(index, source, QUERIES, K, refine_factor=index.refine_factor)
        return recall(np.array([positions for positions, _ in nearest]), expected)

    plain, refined = found(1.0), found(20.0)
    assert refined >= 0.99
    assert plain == 1.0 if exact else plain < refined - 0.05
