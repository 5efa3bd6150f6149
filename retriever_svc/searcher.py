"""The work of a request, without queue or transport: encode, search, fetch, rank."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np

from retriever_svc.encoder import TextEncoder
from retriever_svc.kinds import Lookup, LookupOptions, Ranked, Scales, SearchKind, find
from retriever_svc.ranking import log_priors
from retriever_svc.types import Float32, Hit, Query, QueryHits

AddTime = Callable[[str, float], None]


class Searcher:
    """Runs the lookups of a batch together. Safe to call from one thread at a time."""

    def __init__(self, encoder: TextEncoder, scales: Scales) -> None:
        self.encoder = encoder
        self.scales = scales
        self.observe_tokens: Callable[[int], None] = lambda _tokens: None  # told the tokens of each batch's texts

    def run(self, lookups: Sequence[Lookup], add_time: AddTime) -> list[tuple[QueryHits, ...]]:
        """The results of each lookup; `add_time` is told the seconds of the stages encode, search and fetch."""
        queries = [query for lookup in lookups for query in lookup.queries]
        owners = [lookup for lookup in lookups for _ in lookup.queries]
        started = time.monotonic()
        vectors, decoded = self._encode(queries, owners)
        encoded = time.monotonic()
        nearest = self._search(queries, vectors, owners)
        searched = time.monotonic()
        hits = self._fetch(nearest, owners)
        add_time("encode", encoded - started)
        add_time("search", searched - encoded)
        add_time("fetch", time.monotonic() - searched)
        results = iter(zip(hits, decoded, strict=True))
        return [tuple(QueryHits(*next(results)) for _ in lookup.queries) for lookup in lookups]

    def _encode(self, queries: Sequence[Query], owners: Sequence[Lookup]) -> tuple[Float32, list[str]]:
        """Vectors [n_queries, dim] and decoded texts (empty for a query that came as a vector).

        A query that only its words are searched for has no vector.
        """
        vectors = np.zeros((len(queries), self.encoder.config.dim), dtype=np.float32)
        rows = [row for row, query in enumerate(queries) if query.vector is None]
        tokens = self.encoder.tokenize_queries([queries[row].text for row in rows])
        token_ids = dict(zip(rows, tokens, strict=True))
        for row, query in enumerate(queries):
            if query.vector is not None:
                vectors[row] = query.vector
        encoded = [row for row in rows if owners[row].options.kind is not SearchKind.BM25]
        if encoded:
            self.observe_tokens(sum(len(token_ids[row]) for row in encoded))
            vectors[encoded] = self.encoder.encode_tokens([token_ids[row] for row in encoded])
        texts = dict(zip(rows, self.encoder.decode(tokens), strict=True))
        return vectors, [texts.get(row, "") for row in range(len(queries))]

    def _search(self, queries: Sequence[Query], vectors: Float32, owners: Sequence[Lookup]) -> list[Ranked]:
        """Positions and scores for each query; one call of the index for each version, k and options."""
        nearest: dict[int, Ranked] = {}
        groups: dict[tuple[int, int, LookupOptions], list[int]] = {}
        for row, owner in enumerate(owners):
            groups.setdefault((id(owner.snapshot), owner.k, owner.options), []).append(row)
        for rows in groups.values():
            found = find(owners[rows[0]], [queries[row] for row in rows], vectors[rows], self.scales)
            nearest.update(zip(rows, found, strict=True))
        return [nearest[row] for row in range(len(owners))]

    def _fetch(self, nearest: Sequence[Ranked], owners: Sequence[Lookup]) -> list[tuple[Hit, ...]]:
        """The passages of each query with score and prior; one read for each version."""
        hits: dict[int, tuple[Hit, ...]] = {}
        for snapshot in {id(owner.snapshot): owner.snapshot for owner in owners}.values():
            rows = [row for row, owner in enumerate(owners) if owner.snapshot is snapshot]
            passages = iter(snapshot.passages(np.concatenate([nearest[row][0] for row in rows])))
            for row in rows:
                scores = nearest[row][1]
                priors = log_priors(scores, self.scales.of(owners[row].options.kind))
                pairs = zip(scores.tolist(), priors.tolist(), strict=True)
                hits[row] = tuple(Hit(next(passages), score, prior) for score, prior in pairs)
        return [hits[row] for row in range(len(owners))]
