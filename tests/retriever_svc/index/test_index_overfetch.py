"""Searching among allowed positions with an inner search that knows no masks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retriever_svc.index.overfetch import search_allowed


class Inner:
    """Finds everything, best first, and counts what it was asked for; `finds` bounds it as an IVF's cells do."""

    def __init__(self, scores: np.ndarray, finds: int | None = None) -> None:
        self.scores = scores
        self.finds = scores.shape[1] if finds is None else finds
        self.asked: list[tuple[int, int]] = []

    def __call__(self, queries: np.ndarray, n_wanted: int) -> tuple[np.ndarray, np.ndarray]:
        self.asked.append((len(queries), n_wanted))
        rows = self.scores[queries[:, 0].astype(int)]
        positions = np.argsort(-rows, axis=1, kind="stable")[:, :n_wanted]
        scores = np.take_along_axis(rows, positions, 1)
        positions[:, self.finds :], scores[:, self.finds :] = -1, -np.inf
        return scores, positions


def queries(n: int) -> np.ndarray:
    return np.arange(n, dtype=np.float32)[:, None]


def expected(scores: np.ndarray, allowed: np.ndarray, n: int) -> np.ndarray:
    order = np.argsort(-np.where(allowed, scores, -np.inf), axis=1, kind="stable")[:, :n]
    return np.where(np.take_along_axis(np.broadcast_to(allowed, scores.shape), order, 1), order, -1)


@given(st.integers(0, 10_000), st.integers(1, 60), st.integers(1, 70), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_finds_all_that_are_allowed(seed: int, size: int, n: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    scores, allowed = rng.normal(size=(4, size)).astype(np.float32), rng.random(size) < share
    found, positions, undone = search_allowed(Inner(scores), queries(4), n, allowed, size)
    assert not len(undone)
    wanted = np.full((4, n), -1)
    wanted[:, : min(n, size)] = expected(scores, allowed, n)
    np.testing.assert_array_equal(positions, wanted)
    np.testing.assert_array_equal(
        found, np.where(positions >= 0, np.take_along_axis(scores, np.maximum(positions, 0), 1), -np.inf)
    )


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(1, 10), st.floats(0, 1))
@settings(max_examples=200, deadline=None)
def test_names_the_queries_for_which_the_limit_was_too_low(seed: int, most: int, n: int, share: float) -> None:
    rng = np.random.default_rng(seed)
    scores, allowed = rng.normal(size=(6, 60)).astype(np.float32), rng.random(60) < share
    inner = Inner(scores)
    _, positions, undone = search_allowed(inner, queries(6), n, allowed, most)
    assert all(wanted <= most for _, wanted in inner.asked)
    right = (positions == expected(scores, allowed, n)).all(1)
    assert right[np.setdiff1d(np.arange(6), undone)].all()
    assert ((positions[undone] == -1).any(1)).all()


def test_asks_again_only_for_the_queries_that_need_more() -> None:
    scores = np.tile(np.arange(1000, 0, -1, dtype=np.float32), (3, 1))
    scores[2] = scores[2, ::-1]
    allowed = np.arange(1000) >= 300  # the first two have 300 better ones that are not allowed, the third none
    inner = Inner(scores)
    _, positions, undone = search_allowed(inner, queries(3), 10, allowed, 1000)
    assert positions[0].tolist() == list(range(300, 310))
    assert positions[2].tolist() == list(range(999, 989, -1))
    assert not len(undone)
    assert inner.asked[0][0] == 3
    assert {asked for asked, _ in inner.asked[1:]} == {2}
    assert inner.asked[-1][1] <= 310


@pytest.mark.parametrize("finds", [0, 5])
def test_an_index_with_no_more_to_give_is_not_asked_again(finds: int) -> None:
    scores = np.random.default_rng(0).normal(size=(2, 500)).astype(np.float32)
    inner = Inner(scores, finds)
    _, positions, undone = search_allowed(inner, queries(2), 20, np.arange(500) % 2 == 0, 500)
    assert len(inner.asked) == 1
    assert not len(undone)
    assert (positions >= 0).sum() <= 2 * finds
