from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retriever_svc.lexical.fusion import Candidates, reciprocal_rank_fusion, weighted_sum

N_ROWS = 12


def top(scores: np.ndarray, n: int, scale: float = 1.0) -> Candidates:
    """The n best of all rows, and how to score the others; row ids are 10 x position."""
    order = np.lexsort((np.arange(len(scores)), -scores))[:n]
    return Candidates(order * 10, scores[order], lambda row_ids: scores[row_ids // 10], scale)


SCORES = st.lists(st.integers(-4, 4), min_size=N_ROWS, max_size=N_ROWS).map(lambda values: np.array(values, np.float32))


@given(SCORES, SCORES, st.integers(0, N_ROWS), st.integers(0, N_ROWS), st.sampled_from([0.0, 0.25, 0.5, 1.0]))
def test_a_weighted_sum_is_exact_for_all_that_was_found(
    dense: np.ndarray, lexical: np.ndarray, n_dense: int, n_lexical: int, weight: float
) -> None:
    ours = top(dense, n_dense, scale=2.0), top(lexical, n_lexical, scale=0.5)
    ids, scores = weighted_sum(*ours, weight, k=5)
    both = {*ours[0].row_ids.tolist(), *ours[1].row_ids.tolist()}
    expected = {row: (1 - weight) * 2.0 * dense[row // 10] + weight * 0.5 * lexical[row // 10] for row in both}
    order = sorted(expected, key=lambda row: (-expected[row], row))[:5]
    assert ids.tolist() == order
    assert scores.tolist() == [expected[row] for row in order]
    assert (ids.dtype, scores.dtype) == (np.int64, np.float32)


def test_only_missing_scores_are_asked_for() -> None:
    asked: list[list[int]] = []

    def score_rows(row_ids: np.ndarray) -> np.ndarray:
        asked.append(row_ids.tolist())
        return np.zeros(len(row_ids), np.float32)

    def candidates(*row_ids: int) -> Candidates:
        return Candidates(np.array(row_ids, np.int64), np.ones(len(row_ids), np.float32), score_rows)

    weighted_sum(candidates(5, 3), candidates(3, 9), 0.5, k=3)
    assert asked == [[9], [5]]
    weighted_sum(candidates(5, 3), candidates(3, 5), 0.5, k=3)
    assert len(asked) == 2


def test_the_prior_is_the_geometric_mean_of_both() -> None:
    dense, lexical = np.array([0.9, 0.7, 0.1], np.float32), np.array([2.0, 7.0, 0.0], np.float32)
    _, fused = weighted_sum(top(dense, 3, 15.0), top(lexical, 3, 0.6), 0.3, k=3)
    product = np.exp(15.0 * dense) ** 0.7 * np.exp(0.6 * lexical) ** 0.3
    prior = np.sort(product / product.sum())[::-1]
    assert np.exp(fused) / np.exp(fused).sum() == pytest.approx(prior, rel=1e-5)


def test_reciprocal_ranks_are_summed() -> None:
    ids, scores = reciprocal_rank_fusion([np.array([7, 3, 5]), np.array([5, 7]), np.array([], np.int64)], k=10)
    assert ids.tolist() == [7, 5, 3]
    assert scores == pytest.approx([1 / 61 + 1 / 62, 1 / 63 + 1 / 61, 1 / 62])


def test_equal_ranks_go_by_id_and_k_cuts() -> None:
    rankings = [np.array([9, 4]), np.array([4, 9])]
    assert reciprocal_rank_fusion(rankings, k=2)[0].tolist() == [4, 9]
    assert reciprocal_rank_fusion(rankings, k=1)[0].tolist() == [4]
    assert reciprocal_rank_fusion([], k=3)[0].tolist() == []


def test_the_constant_says_how_much_the_first_ranks_count() -> None:
    rankings = [np.array([1, 2]), np.array([3, 2])]
    assert reciprocal_rank_fusion(rankings, k=1)[0].tolist() == [2]
    assert reciprocal_rank_fusion(rankings, k=1, constant=0.0)[0].tolist() == [1]  # 1 = 1/2 + 1/2: by id
    assert reciprocal_rank_fusion(rankings, k=1, constant=-0.5)[0].tolist() == [1]
