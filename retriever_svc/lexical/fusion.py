"""Hybrid search: one ranking from the candidates of dense and lexical search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from retriever_svc.types import Float32, Int64

RANK_CONSTANT = 60  # of reciprocal rank fusion, as Cormack, Clarke and Büttcher chose it (SIGIR 2009)

# Fitted on 1,500 development questions of Natural Questions and TriviaQA over the demo's knowledge base: the weight by
# how often the first passage holds an answer, the scales by log p(z|x) of the first of five passages that does.
WEIGHT = 0.3  # of BM25 in the weighted sum, whose own scale is 1
BM25_SCALE = 0.6
RECIPROCAL_RANK_SCALE = 300.0


@dataclass(frozen=True, eq=False)
class Candidates:
    """What one of the searches found, best first, and how it scores rows that it did not find.

    `scale` is the factor with which its scores are logits of a prior over passages, as in log p(z|x) = log-softmax of
    scale x score.
    """

    row_ids: Int64  # [n_candidates]
    scores: Float32  # [n_candidates]
    score_rows: Callable[[Int64], Float32]  # exact scores of any rows
    scale: float = 1.0


def weighted_sum(dense: Candidates, lexical: Candidates, weight: float, k: int) -> tuple[Int64, Float32]:
    """The k best candidates by (1 - weight) x dense logit + weight x lexical logit, best first, ties by id.

    The score is the logit of the weighted geometric mean of both priors. It is exact for every row that either
    search found: scores that one of them lacks are asked for. `weight` is between 0 (dense alone) and 1.
    """
    row_ids = np.union1d(dense.row_ids, lexical.row_ids)
    total = (1.0 - weight) * _logits(dense, row_ids) + weight * _logits(lexical, row_ids)
    return _best(row_ids, total, k)


def reciprocal_rank_fusion(rankings: Sequence[Int64], k: int, constant: float = RANK_CONSTANT) -> tuple[Int64, Float32]:
    """The k best rows by the sum of 1 / (constant + rank) over the rankings that hold them, best first, ties by id.

    A ranking is ids of rows [n_candidates], best first, at rank 1.
    """
    row_ids = np.unique(np.concatenate([np.empty(0, np.int64), *rankings]))
    total = np.zeros(len(row_ids), dtype=np.float64)
    for ranking in rankings:
        total[np.searchsorted(row_ids, ranking)] += 1.0 / (constant + np.arange(1, len(ranking) + 1))
    return _best(row_ids, total, k)


def _logits(found: Candidates, row_ids: Int64) -> np.ndarray:
    """Float64 logits of ascending rows, some of them found, [n_rows]."""
    scores = np.empty(len(row_ids), dtype=np.float64)
    missing = np.ones(len(row_ids), dtype=np.bool_)
    places = np.searchsorted(row_ids, found.row_ids)
    scores[places] = found.scores
    missing[places] = False
    if missing.any():
        scores[missing] = found.score_rows(row_ids[missing])
    return scores * found.scale


def _best(row_ids: Int64, total: np.ndarray, k: int) -> tuple[Int64, Float32]:
    scores = total.astype(np.float32)
    order = np.lexsort((row_ids, -scores))[:k]
    return row_ids[order], scores[order]
