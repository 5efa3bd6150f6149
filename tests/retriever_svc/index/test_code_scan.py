"""Exact search by codes: what it is sure of is what comparing every vector finds; where it cannot be, it says so."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
import pytest

from retriever_svc.index import FaissIndex, IndexSpec
from retriever_svc.index.code_scan import CodeScan
from retriever_svc.index.faiss_index import SCANNED_QUERIES
from retriever_svc.ranking import find_nearest
from tests.retriever_svc.index.sources import ArraySource, clustered

SIZE, K = 6000, 13
RNG = np.random.default_rng(5)


def flat(vectors: np.ndarray) -> faiss.IndexFlatIP:
    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(np.ascontiguousarray(vectors, np.float32))
    return index


def true_scores(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    return vectors.astype(np.float64) @ query.astype(np.float64)


def is_nearest(vectors: np.ndarray, query: np.ndarray, positions: np.ndarray, scores: np.ndarray) -> bool:
    """Whether no vector elsewhere is better than the last one found, rounding to float32 considered."""
    true = true_scores(vectors, query)
    lengths = np.linalg.norm(query.astype(np.float64)) * np.linalg.norm(vectors.astype(np.float64), axis=1).max()
    elsewhere = np.delete(true, positions)
    assert len(set(positions.tolist())) == len(positions)
    np.testing.assert_allclose(scores, true[positions], atol=1e-5 * lengths)
    assert (np.diff(scores) <= 0).all()
    return bool(elsewhere.max() <= true[positions].min() + 1e-5 * lengths)


def uneven(dimension: int) -> np.ndarray:
    """Vectors as DPR's: long, around a mean of their own, and a few values far larger than the others."""
    vectors = 8 * clustered(SIZE, dimension, seed=3)
    vectors[:, :3] = 40 * RNG.normal(size=(SIZE, 3))
    return (vectors + 5 * RNG.normal(size=dimension)).astype(np.float32)


SPREADS = {
    "clustered": clustered(SIZE, 64),
    "odd width": clustered(SIZE, 51),
    "wide": clustered(SIZE, 384),
    "uneven": uneven(48),
    "small": 1e-6 * clustered(SIZE, 64),
    "large": 1e6 * clustered(SIZE, 64),
    "a constant value": np.hstack([clustered(SIZE, 32), np.full((SIZE, 1), 3, np.float32)]),
}


@pytest.mark.parametrize("name", SPREADS)
def test_what_it_is_sure_of_are_the_nearest(name: str) -> None:
    vectors = SPREADS[name].astype(np.float32)
    scan = CodeScan(flat(vectors))
    noise = vectors.std(0) * RNG.normal(size=(200, vectors.shape[1]))
    sure = 0
    for query in (vectors[RNG.integers(SIZE, size=200)] + noise).astype(np.float32):
        found = scan.search(query[np.newaxis], K)
        if found is not None:
            scores, positions = found
            assert (scores.dtype, positions.dtype, scores.shape) == (np.float32, np.int64, (1, K))
            assert is_nearest(vectors, query, positions[0], scores[0])
            sure += 1
    assert sure >= 150, "it is of no use if it is hardly ever sure"


def test_where_the_codes_hide_what_decides_it_is_not_sure() -> None:
    """Clusters tighter than a step of the codes: the nearest are not among those that the codes choose."""
    middles, rng = clustered(12, 32), np.random.default_rng(6)
    vectors = (middles.repeat(SIZE // 12, 0) + 5e-4 * rng.normal(size=(SIZE, 32))).astype(np.float32)
    scan, trusting = CodeScan(flat(vectors)), CodeScan(flat(vectors))
    trusting._farthest = trusting._longest_code = 0.0
    wrong = 0
    for query in (middles[rng.integers(12, size=100)] + 0.3 * rng.normal(size=(100, 32))).astype(np.float32):
        scan._skip = trusting._skip = 0
        found, trusted = scan.search(query[np.newaxis], K), trusting.search(query[np.newaxis], K)
        assert found is None or is_nearest(vectors, query, found[1][0], found[0][0])
        wrong += trusted is not None and not is_nearest(vectors, query, trusted[1][0], trusted[0][0])
    assert wrong > 10, "the codes hide nothing: this shows nothing"


def margins(vectors: np.ndarray, query: np.ndarray) -> np.ndarray:
    """How far each true score is below the most that it can be by its code, as a share of the scores' range."""
    scan = CodeScan(flat(vectors))
    weighed = scan.weigh(query.astype(np.float32))
    assert weighed is not None
    whole, unit, most_more = weighed
    codes = scan._codes.reconstruct_n(0, len(vectors)).astype(np.float64)
    true = true_scores(vectors, query)
    return (unit * (codes @ whole) + most_more - true) / np.ptp(true)


def test_no_score_exceeds_what_the_codes_leave_out() -> None:
    """The query is whole numbers already, and points to where the farthest vector is from its code."""
    vectors = clustered(SIZE, 64)
    mean = vectors.mean(0, dtype=np.float64)
    step = np.abs(vectors - mean).max(0) / 127
    off = (vectors - mean) / step
    off -= np.rint(off)
    farthest = off[np.linalg.norm(off, axis=1).argmax()]
    query = np.rint(127 * farthest / np.abs(farthest).max()) / step
    assert 0 <= margins(vectors, query).min() < 1e-3


def test_no_score_exceeds_what_whole_numbers_leave_out() -> None:
    """The vectors are codes already; the query's rest points to the longest of them."""
    half = RNG.integers(-127, 128, size=(SIZE // 2, 64)).astype(np.float32)
    half[0] = 127
    whole = RNG.integers(-50, 51, size=64)
    whole[0] = 127
    rest = 0.4 * np.sign(half[0])
    rest[0] = 0
    assert 0 <= margins(np.concatenate([half, -half]), whole + rest).min() < 5e-3


def test_vectors_that_are_all_alike_are_left_to_others_and_after_a_while_not_tried() -> None:
    vectors = clustered(1, 32).repeat(SIZE, 0) + 1e-4 * RNG.normal(size=(SIZE, 32)).astype(np.float32)
    vectors[0] = 5 * RNG.normal(size=32)  # one that makes the steps large
    scan = CodeScan(flat(vectors.astype(np.float32)))
    queries = RNG.normal(size=(60, 1, 32)).astype(np.float32)
    assert [scan.search(query, K) for query in queries] == [None] * 60
    scan._codes = Counter(scan._codes)
    for query in queries:
        scan.search(query, K)
    assert scan._codes.calls <= 3


class Counter:
    """Counts the searches of an index."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.calls = inner, 0

    def search(self, queries: np.ndarray, n_wanted: int) -> Any:
        self.calls += 1
        return self.inner.search(queries, n_wanted)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf, 3e38, 1e-30])
def test_a_query_that_scores_cannot_be_told_for_is_left_to_others(value: float) -> None:
    scan = CodeScan(flat(clustered(SIZE, 32)))
    assert scan.search(np.full((1, 32), value, np.float32), K) is None


@pytest.mark.parametrize("value", [3e38, 1e-30])
def test_vectors_that_cannot_be_told_apart_in_float32_are_left_to_others(value: float) -> None:
    vectors = (value * clustered(SIZE, 32) / np.abs(clustered(SIZE, 32)).max()).astype(np.float32)
    scan = CodeScan(flat(vectors))
    assert scan.search(clustered(1, 32, seed=2), K) is None


@pytest.mark.parametrize("k", [1, 5, 100])
def test_a_lone_question_gets_what_it_gets_in_a_batch_and_without_codes(k: int) -> None:
    source, queries = ArraySource(clustered(SIZE, 64)), clustered(40, 64, seed=9)
    index = FaissIndex.build(source, IndexSpec(device="cpu", build_threads=1))
    plain = FaissIndex.build(source, IndexSpec(device="cpu", build_threads=1, codes=False))
    together = find_nearest(index, source, queries, k)
    for query, (positions, scores) in zip(queries, together, strict=True):
        for each in (index, plain):
            [(alone, alone_scores)] = find_nearest(each, source, query[np.newaxis], k)
            np.testing.assert_array_equal(alone, positions)
            np.testing.assert_array_equal(alone_scores, scores)


@pytest.mark.parametrize("n_queries", [2, SCANNED_QUERIES, SCANNED_QUERIES + 1])
def test_a_few_questions_get_what_each_gets_alone(n_queries: int) -> None:
    source, queries = ArraySource(clustered(SIZE, 64)), clustered(n_queries, 64, seed=9)
    index = FaissIndex.build(source, IndexSpec(device="cpu", build_threads=1))
    for row, (positions, scores) in enumerate(find_nearest(index, source, queries, K)):
        [(alone, alone_scores)] = find_nearest(index, source, queries[row : row + 1], K)
        np.testing.assert_array_equal(alone, positions)
        np.testing.assert_array_equal(alone_scores, scores)


def test_codes_are_made_where_they_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr("retriever_svc.index.faiss_index.CodeScan", lambda core: made.append(core.ntotal))
    many, few = ArraySource(clustered(SIZE, 32)), ArraySource(clustered(500, 32))
    for source, spec in [
        (many, IndexSpec(device="cpu")),
        (few, IndexSpec(device="cpu")),
        (many, IndexSpec(device="cpu", codes=False)),
        (many, IndexSpec("HNSW8", device="cpu")),
        (many, IndexSpec("Flat", device="cpu", precision="float16")),
    ]:
        FaissIndex.build(source, spec)
    assert made == [SIZE]
