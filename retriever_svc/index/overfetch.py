"""Searches among allowed positions with an index that cannot be told of them: ask for more, keep what is allowed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from retriever_svc.types import Float32, Int64

Search = Callable[[Float32, int], tuple[Float32, Int64]]

FIRST_EXTRA = 1.25  # how much more than the expected number the first round asks for


def search_allowed(
    search: Search, queries: Float32, n_candidates: int, allowed: NDArray[np.bool_], most: int
) -> tuple[Float32, Int64, Int64]:
    """The best allowed candidates of queries [n_queries, dim], asking `search` for up to `most` of each.

    The first round asks for what finds enough if the allowed lie evenly, every further one for twice as many, and only
    for the queries that have not enough yet. A query is done when it has enough, when `search` had no more to give, or
    when so many were asked for that all allowed must be among them.

    Returns:
        Scores and positions [n_queries, n_candidates], best first and -1 where nothing was found, and the rows of the
        queries that are not done: `most` was not enough for them.
    """
    scores, positions = nothing(len(queries), n_candidates)
    n_allowed = int(np.count_nonzero(allowed))
    enough = min(len(allowed), n_candidates + len(allowed) - n_allowed)
    wanted = int(FIRST_EXTRA * n_candidates * len(allowed) / max(n_allowed, 1)) + 1
    undone = np.arange(len(queries)) if n_allowed else np.empty(0, np.int64)
    while len(undone):
        wanted = min(wanted, enough, most)
        found = search(queries[undone], wanted)
        done = np.zeros(len(undone), bool)
        for place, (row, row_scores, row_positions) in enumerate(zip(undone, *found, strict=True)):
            kept = np.flatnonzero((row_positions >= 0) & allowed[row_positions])[:n_candidates]
            scores[row, : len(kept)], positions[row, : len(kept)] = row_scores[kept], row_positions[kept]
            done[place] = len(kept) == n_candidates or wanted >= enough or row_positions[-1] < 0
        undone = undone[~done]
        if wanted >= most:
            break
        wanted *= 2
    return scores, positions, undone


def nothing(n_queries: int, n_candidates: int) -> tuple[Float32, Int64]:
    """Scores and positions of a search that finds nothing."""
    scores = np.full((n_queries, n_candidates), -np.inf, np.float32)
    return scores, np.full((n_queries, n_candidates), -1, np.int64)
