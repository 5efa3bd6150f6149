"""The work of a request, without queue or transport: encode, search, fetch, rank."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from retriever_svc.encoder import TextEncoder
from retriever_svc.filters import Filter
from retriever_svc.live.snapshot import Snapshot, View
from retriever_svc.ranking import find_nearest, log_priors, scan_nearest
from retriever_svc.types import Float32, Hit, Int64, Query, QueryHits

AddTime = Callable[[str, float], None]
# Up to this many passages, or this part of them, that a filter lets through, an approximate index is not asked:
# comparing with each is as fast, and finds all.
SCANNED_ROWS = 1_000
SCANNED_PART = 0.01
NO_FILTER = Filter()


@dataclass(frozen=True)
class LookupOptions:
    """Which passages a lookup may find, and how an approximate index searches; 0: its own setting."""

    filter: Filter = NO_FILTER
    nprobe: int = 0
    ef_search: int = 0


DEFAULT_OPTIONS = LookupOptions()


@dataclass(frozen=True)
class Lookup:
    """The queries of one request, its k, the version that answers it, and options."""

    queries: tuple[Query, ...]
    k: int
    snapshot: Snapshot
    options: LookupOptions = DEFAULT_OPTIONS


class Searcher:
    """Runs the lookups of a batch together. Safe to call from one thread at a time."""

    def __init__(self, encoder: TextEncoder, score_scale: float) -> None:
        self.encoder = encoder
        self.score_scale = score_scale
        self.observe_tokens: Callable[[int], None] = lambda _tokens: None  # told the tokens of each batch's texts

    def run(self, lookups: Sequence[Lookup], add_time: AddTime) -> list[tuple[QueryHits, ...]]:
        """The results of each lookup; `add_time` is told the seconds of the stages encode, search and fetch."""
        queries = [query for lookup in lookups for query in lookup.queries]
        owners = [lookup for lookup in lookups for _ in lookup.queries]
        started = time.monotonic()
        vectors, decoded = self._encode(queries)
        encoded = time.monotonic()
        nearest = self._search(vectors, owners)
        searched = time.monotonic()
        hits = self._fetch(nearest, owners)
        add_time("encode", encoded - started)
        add_time("search", searched - encoded)
        add_time("fetch", time.monotonic() - searched)
        results = iter(zip(hits, decoded, strict=True))
        return [tuple(QueryHits(*next(results)) for _ in lookup.queries) for lookup in lookups]

    def _encode(self, queries: Sequence[Query]) -> tuple[Float32, list[str]]:
        """Vectors [n_queries, dim] and decoded texts (empty for a query that came as a vector)."""
        vectors = np.empty((len(queries), self.encoder.config.dim), dtype=np.float32)
        decoded = [""] * len(queries)
        rows = [row for row, query in enumerate(queries) if query.vector is None]
        for row, query in enumerate(queries):
            if query.vector is not None:
                vectors[row] = query.vector
        if rows:
            token_ids = self.encoder.tokenize_queries([queries[row].text for row in rows])
            self.observe_tokens(sum(map(len, token_ids)))
            vectors[rows] = self.encoder.encode_tokens(token_ids)
            for row, text in zip(rows, self.encoder.decode(token_ids), strict=True):
                decoded[row] = text
        return vectors, decoded

    def _search(self, vectors: Float32, owners: Sequence[Lookup]) -> list[tuple[Int64, Float32]]:
        """Positions and scores for each query; one call of the index for each version, k and options."""
        nearest: dict[int, tuple[Int64, Float32]] = {}
        groups: dict[tuple[int, int, LookupOptions], list[int]] = {}
        for row, owner in enumerate(owners):
            groups.setdefault((id(owner.snapshot), owner.k, owner.options), []).append(row)
        for rows in groups.values():
            found = nearest_in(owners[rows[0]], vectors[rows])
            nearest.update(zip(rows, found, strict=True))
        return [nearest[row] for row in range(len(owners))]

    def _fetch(self, nearest: Sequence[tuple[Int64, Float32]], owners: Sequence[Lookup]) -> list[tuple[Hit, ...]]:
        """The passages of each query with score and prior; one read for each version."""
        hits: dict[int, tuple[Hit, ...]] = {}
        for snapshot in {id(owner.snapshot): owner.snapshot for owner in owners}.values():
            rows = [row for row, owner in enumerate(owners) if owner.snapshot is snapshot]
            passages = iter(snapshot.passages(np.concatenate([nearest[row][0] for row in rows])))
            for row in rows:
                scores = nearest[row][1]
                priors = log_priors(scores, self.score_scale)
                pairs = zip(scores.tolist(), priors.tolist(), strict=True)
                hits[row] = tuple(Hit(next(passages), score, prior) for score, prior in pairs)
        return [hits[row] for row in range(len(owners))]


def nearest_in(lookup: Lookup, queries: Float32) -> list[tuple[Int64, Float32]]:
    """Positions and scores of the k nearest passages of each query [n_queries, dim] that the options let through.

    There are never fewer than k while that many are let through: where an approximate index finds too few, or few are
    let through, each of those is compared with the query.
    """
    snapshot, options = lookup.snapshot, lookup.options
    view = View(snapshot, options.filter, options.nprobe, options.ef_search)
    wanted = min(lookup.k, view.size)
    few = view.size < snapshot.size and view.size <= max(SCANNED_ROWS, SCANNED_PART * snapshot.size)
    if few and not snapshot.base.index.exact:
        return [scan_nearest(view, view.positions(), query, wanted, snapshot.row_ids) for query in queries]
    found = find_nearest(view, view, queries, wanted, snapshot.row_ids)
    for row, (positions, _) in enumerate(found):
        if len(positions) < wanted:
            found[row] = scan_nearest(view, view.positions(), queries[row], wanted, snapshot.row_ids)
    return found
