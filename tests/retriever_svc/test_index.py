from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ragserve.errors import FailedPreconditionError, InvalidInputError
from retriever_svc.index import FaissIndex, IndexCache, IndexSpec
from retriever_svc.ranking import find_nearest, log_priors


@dataclass
class ArraySource:
    """Vectors of an array, in blocks of 100."""

    array: np.ndarray

    @property
    def size(self) -> int:
        return len(self.array)

    @property
    def dimension(self) -> int:
        return self.array.shape[1]

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        return self.array[positions]

    def vector_blocks(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.array), 100):
            yield self.array[start : start + 100]


def spec(factory: str = "Flat", **changes: object) -> IndexSpec:
    return IndexSpec(factory=factory, device="cpu", build_threads=1, **changes)


def random_vectors(n: int, dimension: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, dimension)).astype(np.float32)


def brute_force(vectors: np.ndarray, query: np.ndarray, k: int) -> tuple[list[int], np.ndarray]:
    scores = (vectors.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    order = sorted(range(len(vectors)), key=lambda position: (-scores[position], position))[:k]
    return order, scores[order]


@pytest.mark.parametrize("k", [1, 5, 500])
def test_flat_equals_brute_force(k: int) -> None:
    source, queries = ArraySource(random_vectors(500)), random_vectors(30, seed=1)
    index = FaissIndex.build(source, spec())
    assert (index.size, index.dimension, index.device) == (500, 16, "cpu")
    for (positions, scores), query in zip(find_nearest(index, source, queries, k), queries, strict=True):
        expected, expected_scores = brute_force(source.array, query, k)
        assert positions.tolist() == expected
        np.testing.assert_array_equal(scores, expected_scores)


def test_a_flat_index_is_over_vectors_that_are_in_memory() -> None:
    """It does not copy them, and keeps them when nobody else does."""
    source, queries = ArraySource(random_vectors(500)), random_vectors(30, seed=1)
    index = FaissIndex.build(source, spec())
    copied = FaissIndex.build(replace(source, array=random_vectors(500)), spec("RR16,Flat"))
    expected = [brute_force(source.array, query, 5)[0] for query in queries]
    kept = weakref.ref(source.array)
    del source
    assert kept() is not None
    assert index.search(queries, 5)[1].tolist() == expected
    assert copied.search(queries, 5)[1].tolist() == expected  # a turned copy of them
    del index
    assert kept() is None


@given(
    st.lists(st.tuples(*[st.integers(-1, 1)] * 3), min_size=1, max_size=60), st.tuples(*[st.integers(-1, 1)] * 3),
    st.integers(1, 8),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_ties_are_broken_by_position(rows: list, query: tuple, k: int) -> None:
    source = ArraySource(np.asarray(rows, dtype=np.float32))
    k = min(k, len(rows))
    queries = np.asarray([query, rows[0]], dtype=np.float32)
    index = FaissIndex.build(source, spec())
    for (positions, _), each in zip(find_nearest(index, source, queries, k), queries, strict=True):
        assert positions.tolist() == brute_force(source.array, each, k)[0]


def test_many_equal_passages_come_in_order() -> None:
    source = ArraySource(np.tile(random_vectors(1), (3000, 1)))
    ((positions, _),) = find_nearest(FaissIndex.build(source, spec()), source, source.array[:1], 4)
    assert positions.tolist() == [0, 1, 2, 3]


def test_a_query_alone_equals_the_query_in_a_batch() -> None:
    source, queries = ArraySource(random_vectors(2000, 64)), random_vectors(64, 64, seed=2)
    index = FaissIndex.build(source, spec())
    for row, (positions, scores) in enumerate(find_nearest(index, source, queries, 10)):
        ((alone, alone_scores),) = find_nearest(index, source, queries[row : row + 1], 10)
        assert positions.tolist() == alone.tolist()
        np.testing.assert_array_equal(scores, alone_scores)


@pytest.mark.parametrize(
    ("factory", "parameters"), [("HNSW32", "efSearch=128"), ("IVF16,Flat", "nprobe=8"), ("IVF16,SQ8", "nprobe=16")]
)
def test_approximate_indexes_find_most_and_score_exactly(factory: str, parameters: str) -> None:
    source, queries = ArraySource(random_vectors(2000)), random_vectors(50, seed=3)
    index = FaissIndex.build(source, spec(factory, search_parameters=parameters, training_vectors=1000))
    common = 0
    for (positions, scores), query in zip(find_nearest(index, source, queries, 10), queries, strict=True):
        common += len(set(positions.tolist()) & set(brute_force(source.array, query, 10)[0]))
        exact = (source.array[positions].astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
        np.testing.assert_array_equal(scores, exact)
        assert (np.diff(scores) <= 0).all()
    assert common / 500 > 0.9


def test_an_index_that_finds_too_few_gives_what_it_has() -> None:
    source = ArraySource(random_vectors(2000))
    index = FaissIndex.build(source, spec("IVF64,Flat", search_parameters="nprobe=1"))
    ((positions, _),) = find_nearest(index, source, source.array[:1], 1500)
    assert 0 < len(positions) < 1500
    assert (positions >= 0).all()


@pytest.mark.parametrize("factory", ["Nonsense", "IVF1000,Flat", "PQ5", ""])
def test_a_wrong_factory_string_is_named(factory: str) -> None:
    with pytest.raises(InvalidInputError, match="index_factory") as caught:
        FaissIndex.build(ArraySource(random_vectors(50)), spec(factory))
    assert caught.value.field == "index_factory"
    assert ".cpp" not in caught.value.message


@pytest.mark.parametrize("factory", ["Nonsense", "PQ5", ""])
def test_a_wrong_factory_string_is_named_also_where_few_vectors_are_searched_exactly(factory: str) -> None:
    with pytest.raises(InvalidInputError, match="index_factory"):
        FaissIndex.build_exact(ArraySource(random_vectors(3)), spec(factory))


def test_wrong_search_parameters_are_named() -> None:
    with pytest.raises(InvalidInputError, match="nprobe=3"):
        FaissIndex.build(ArraySource(random_vectors(50)), spec("Flat", search_parameters="nprobe=3"))


def test_a_gpu_that_faiss_does_not_have_is_refused_by_name() -> None:
    if hasattr(faiss, "StandardGpuResources"):
        pytest.skip("FAISS has GPU support here")
    with pytest.raises(FailedPreconditionError, match="'cuda'"):
        FaissIndex.build(ArraySource(random_vectors(50)), IndexSpec(device="cuda"))


@pytest.mark.parametrize("scale", [1.0, 15.0])
def test_prior_is_the_log_softmax(scale: float) -> None:
    scores = np.array([80.5, 80.25, 60.0], dtype=np.float32)
    weights = np.exp((scores.astype(np.float64) - 80.5) * scale)
    np.testing.assert_allclose(log_priors(scores, scale), np.log(weights / weights.sum()), rtol=1e-6, atol=1e-7)


class TestCache:
    """Index files: used when sound, built again when not."""

    source = ArraySource(random_vectors(300))
    spec = spec("HNSW16")

    def load(self, cache: IndexCache, content: str = "1 encoder rows") -> bool:
        """Whether the index had to be built."""
        built = []

        def build() -> FaissIndex:
            built.append(True)
            return FaissIndex.build(self.source, self.spec)

        index = cache.load_or_build(content, self.spec, build)
        assert index.search(self.source.array[:1], 1)[1][0, 0] >= 0
        return bool(built)

    def test_is_built_once_for_one_content_and_factory(self, tmp_path: Path) -> None:
        cache = IndexCache(tmp_path / "indexes")
        assert self.load(cache)
        assert not self.load(cache)
        assert self.load(cache, "2 encoder rows")
        assert cache.path_of("1", spec("HNSW16")) != cache.path_of("1", spec("HNSW32"))
        assert not list(tmp_path.rglob("*.tmp"))

    @pytest.mark.parametrize("damage", ["truncated", "altered", "no checksum"])
    def test_a_file_with_a_wrong_checksum_is_never_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
    ) -> None:
        cache = IndexCache(tmp_path)
        self.load(cache)
        path = cache.path_of("1 encoder rows", self.spec)
        content = path.read_bytes()
        if damage == "truncated":
            path.write_bytes(content[:-10])
        elif damage == "altered":
            path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
        else:
            path.with_suffix(".faiss.sha256").unlink()
        read = []
        monkeypatch.setattr(faiss, "read_index", read.append)
        assert self.load(cache)
        assert not read
        monkeypatch.undo()
        assert not self.load(cache)

    def test_a_directory_that_cannot_be_written_means_no_cache(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        cache = IndexCache(tmp_path / "file" / "indexes")
        assert self.load(cache)
        assert self.load(cache)
