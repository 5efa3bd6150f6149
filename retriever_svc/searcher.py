"""The work of a request, without queue or transport: encode, search, fetch, rank."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from retriever_svc.encoder import TextEncoder
from retriever_svc.index import Index
from retriever_svc.ranking import find_nearest, log_priors
from retriever_svc.rows import Rows
from retriever_svc.types import Float32, Hit, Int64, Query, QueryHits

AddTime = Callable[[str, float], None]


@dataclass(frozen=True)
class Snapshot:
    """One version of the knowledge base, ready to be searched."""

    version: int
    rows: Rows
    index: Index


@dataclass(frozen=True)
class Lookup:
    """The queries of one request, its k, and the version that answers it."""

    queries: tuple[Query, ...]
    k: int
    snapshot: Snapshot


class Searcher:
    """Runs the lookups of a batch together. Safe to call from one thread at a time."""

    def __init__(self, encoder: TextEncoder, score_scale: float) -> None:
        self.encoder = encoder
        self.score_scale = score_scale

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
            vectors[rows] = self.encoder.encode_tokens(token_ids)
            for row, text in zip(rows, self.encoder.decode(token_ids), strict=True):
                decoded[row] = text
        return vectors, decoded

    def _search(self, vectors: Float32, owners: Sequence[Lookup]) -> list[tuple[Int64, Float32]]:
        """Positions and scores for each query; one call of the index for each version and k."""
        nearest: dict[int, tuple[Int64, Float32]] = {}
        groups: dict[tuple[int, int], list[int]] = {}
        for row, owner in enumerate(owners):
            groups.setdefault((owner.snapshot.version, owner.k), []).append(row)
        for rows in groups.values():
            snapshot, k = owners[rows[0]].snapshot, owners[rows[0]].k
            found = find_nearest(snapshot.index, snapshot.rows, vectors[rows], k)
            nearest.update(zip(rows, found, strict=True))
        return [nearest[row] for row in range(len(owners))]

    def _fetch(self, nearest: Sequence[tuple[Int64, Float32]], owners: Sequence[Lookup]) -> list[tuple[Hit, ...]]:
        """The passages of each query with score and prior; one read for each version."""
        hits: dict[int, tuple[Hit, ...]] = {}
        for snapshot in {owner.snapshot.version: owner.snapshot for owner in owners}.values():
            rows = [row for row, owner in enumerate(owners) if owner.snapshot is snapshot]
            passages = iter(snapshot.rows.passages(np.concatenate([nearest[row][0] for row in rows])))
            for row in rows:
                scores = nearest[row][1]
                priors = log_priors(scores, self.score_scale)
                pairs = zip(scores.tolist(), priors.tolist(), strict=True)
                hits[row] = tuple(Hit(next(passages), score, prior) for score, prior in pairs)
        return [hits[row] for row in range(len(owners))]
