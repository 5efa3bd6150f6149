"""Exact scores, order and prior of the candidates that an index found.

An index sums in its own order and precision, which changes with the batch, the device and the kind of index. So its
candidates are scored again: the inner product in float64, rounded to float32, ties by the rows' ids. The result is the
same alone and in a batch, on CPU and GPU, and quantized indexes are re-ranked by their true scores on the way.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, sqrt
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from retriever_svc.types import Float32, Int64

MARGIN = 8  # candidates asked for beyond k, among which near-ties at the k-th place are settled
MAX_CANDIDATES = 2048  # the most a FAISS GPU index returns
ROUNDING = 1e-5  # how far an index's float32 inner product may be off, relative to the vectors' lengths
SCAN_ROWS = 16_384  # vectors compared at a time where no index is asked

# What settles ties between positions: the smaller key comes first.
Keys = Callable[[Int64], Int64]


def positions_as_keys(positions: Int64) -> Int64:
    """Ties go to the smaller position."""
    return positions


class Searchable(Protocol):
    """What `find_nearest` needs of an index."""

    @property
    def size(self) -> int:
        """How many positions a search may return."""

    def search(self, queries: Float32, n_candidates: int) -> tuple[Float32, Int64]:
        """Scores and positions, both [n_queries, n_candidates], best first; position -1 where nothing was found."""


class Vectors(Protocol):
    """What `find_nearest` needs of the vectors that an index is over."""

    def vectors(self, positions: Int64) -> Float32:
        """The vectors at these positions, [n_positions, dim], in this order."""


def find_nearest(
    index: Searchable,
    source: Vectors,
    queries: Float32,
    k: int,
    keys: Keys = positions_as_keys,
    refine_factor: float = 1.0,
) -> list[tuple[Int64, Float32]]:
    """Positions and scores of the k nearest vectors of each query [n_queries, dim], best first, ties by key.

    They are chosen by their true scores among a few more than k candidates of the index, or `refine_factor` times k.
    An approximate index may find fewer than k.
    """
    wanted = min(index.size, max(k + MARGIN, min(ceil(refine_factor * k), MAX_CANDIDATES)))
    found: list[tuple[Int64, Float32]] = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)
    open_rows = np.arange(len(queries) if wanted else 0)
    while len(open_rows):
        reported, positions = index.search(queries[open_rows], wanted)
        last_round = wanted >= min(index.size, max(MAX_CANDIDATES, k))
        undecided = []
        for row, scores, places in zip(open_rows, reported, positions, strict=True):
            candidates = places[places >= 0]
            vectors = source.vectors(candidates)
            found[row] = rank(queries[row], candidates, vectors, k, keys)
            if not last_round and _may_be_tied(queries[row], vectors, found[row][1], scores, k):
                undecided.append(row)
        open_rows = np.asarray(undecided, dtype=np.int64)
        wanted = min(index.size, max(k, min(2 * wanted, MAX_CANDIDATES)))
    return found


def scan_nearest(
    source: Vectors, positions: Int64, query: Float32, k: int, keys: Keys = positions_as_keys
) -> tuple[Int64, Float32]:
    """Positions and scores of the k nearest of some vectors to a query [dim], every one of them compared with it."""
    best, scores = np.empty(0, np.int64), np.empty(0, np.float32)
    for start in range(0, len(positions), SCAN_ROWS):
        block = positions[start : start + SCAN_ROWS]
        ranked, ranked_scores = rank(query, block, source.vectors(block), k, keys)
        best, scores = np.concatenate([best, ranked]), np.concatenate([scores, ranked_scores])
        order = np.lexsort((keys(best), -scores))[:k]
        best, scores = best[order], scores[order]
    return best, scores


def rank(
    query: Float32, positions: Int64, vectors: Float32, k: int, keys: Keys = positions_as_keys
) -> tuple[Int64, Float32]:
    """The k best of some positions by inner product of `vectors` [n_positions, dim] with `query` [dim]."""
    scores = (vectors.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    order = np.lexsort((keys(positions), -scores))[:k]
    return positions[order], scores[order]


def log_priors(scores: Float32, score_scale: float) -> Float32:
    """The prior log p(z|x) (arXiv 2005.11401, section 2.2): log-softmax over the retrieved of scale x score."""
    if not len(scores):
        return scores
    scaled = scores.astype(np.float64) * score_scale
    shifted: NDArray[np.float64] = scaled - scaled.max(initial=-np.inf)
    return np.asarray(shifted - np.log(np.exp(shifted).sum()), dtype=np.float32)


def _may_be_tied(query: Float32, vectors: Float32, best: Float32, reported: Float32, k: int) -> bool:
    """Whether a vector beyond the candidates may score as high as the k-th, rounding considered."""
    if len(best) < k or len(vectors) < len(reported):
        return False  # the index has no more to give
    lengths = sqrt(float(np.einsum("i,i", query, query)) * float(np.einsum("ij,ij->i", vectors, vectors).max()))
    return bool(best[k - 1] - reported[-1] <= ROUNDING * lengths)
