"""The work of a request, without queue or transport: encode, search, fetch, rank."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from ragserve.nothing_found import NO_KEYS, NothingFound
from retriever_svc.encoder import QueryTokens, TextEncoder
from retriever_svc.kinds import Lookup, LookupOptions, Ranked, Scales, SearchKind, filter_keys, find, why_nothing
from retriever_svc.query_cache import QueryCache, QueryKey
from retriever_svc.ranking import log_priors
from retriever_svc.types import Float32, Hit, Query, QueryHits

AddTime = Callable[[str, float], None]


class _Asked:
    """One query of a batch, the lookup that it belongs to, its tokens (of a text), and the key of its answer."""

    def __init__(self, query: Query, lookup: Lookup, tokens: QueryTokens) -> None:
        self.query = query
        self.lookup = lookup
        self.token_ids = tokens.ids
        encoded = lookup.options.kind is not SearchKind.BM25
        self.unread_tokens = tokens.unread if encoded else 0

    @property
    def key(self) -> QueryKey | None:
        """None for a vector. Where words are searched for, the text itself is part of the key."""
        if self.query.vector is not None:
            return None
        options = self.lookup.options
        words = "" if options.kind is SearchKind.DENSE else self.query.text
        return QueryKey.of(self.token_ids, self.lookup.snapshot.version, self.lookup.k, (options, words))


class Searcher:
    """Runs the lookups of a batch together.

    Safe to call from several threads: they encode at the same time, and search one after the other.
    """

    def __init__(self, encoder: TextEncoder, scales: Scales, cache: QueryCache[QueryHits] | None = None) -> None:
        self.encoder = encoder
        self.scales = scales
        self._cache = cache
        self._searching = threading.Lock()  # an index is searched by one thread at a time
        self._counting = threading.Lock()
        self._at_work = 0  # batches that are being encoded
        self.observe_tokens: Callable[[int], None] = lambda _tokens: None  # told the tokens of each batch's texts

    def run(self, lookups: Sequence[Lookup], add_time: AddTime) -> list[tuple[QueryHits, ...]]:
        """The results of each lookup; `add_time` is told the seconds of the stages encode, search and fetch."""
        started = time.monotonic()
        asked = self._tokenize(lookups)
        found = [self._cached(each) for each in asked]
        new = [each for each, known in zip(asked, found, strict=True) if known is None]
        with self._beside(lookups) as beside:
            vectors = self._encode(new, beside)
        encoded = time.monotonic()
        with self._searching:
            nearest = self._search(new, vectors)
            searched = time.monotonic()
            hits = self._fetch(nearest, [each.lookup for each in new])
        results = iter(self._answer(new, hits))
        add_time("encode", encoded - started)
        add_time("search", searched - encoded)
        add_time("fetch", time.monotonic() - searched)
        answers = iter([next(results) if known is None else known for known in found])
        return [tuple(next(answers) for _ in lookup.queries) for lookup in lookups]

    def _tokenize(self, lookups: Sequence[Lookup]) -> list[_Asked]:
        queries = [query for lookup in lookups for query in lookup.queries]
        tokens = iter(self.encoder.query_tokens([query.text for query in queries if query.vector is None]))
        owners = [lookup for lookup in lookups for _ in lookup.queries]
        return [
            _Asked(query, owner, next(tokens) if query.vector is None else QueryTokens([], 0))
            for query, owner in zip(queries, owners, strict=True)
        ]

    def _cached(self, asked: _Asked) -> QueryHits | None:
        key = None if self._cache is None else asked.key
        return None if self._cache is None or key is None else self._cache.get(key)

    @contextmanager
    def _beside(self, lookups: Sequence[Lookup]) -> Iterator[bool]:
        """Whether others are encoded at the same time, or will be: where requests came together, more are coming."""
        with self._counting:
            self._at_work += 1
            beside = self._at_work > 1 or len(lookups) > 1
        try:
            yield beside
        finally:
            with self._counting:
                self._at_work -= 1

    def _encode(self, asked: Sequence[_Asked], beside: bool) -> Float32:
        """Vectors [n_asked, dim]. A query that only its words are searched for has none (zeros)."""
        vectors = np.zeros((len(asked), self.encoder.config.dim), dtype=np.float32)
        rows = []
        for row, each in enumerate(asked):
            if each.query.vector is not None:
                vectors[row] = each.query.vector
            elif each.lookup.options.kind is not SearchKind.BM25:
                rows.append(row)
        if rows:
            self.observe_tokens(sum(len(asked[row].token_ids) for row in rows))
            vectors[rows] = self.encoder.encode_tokens([asked[row].token_ids for row in rows], beside=beside)
        return vectors

    def _search(self, asked: Sequence[_Asked], vectors: Float32) -> list[Ranked]:
        """Positions and scores for each query; one call of the index for each version, k and options."""
        nearest: dict[int, Ranked] = {}
        groups: dict[tuple[int, int, LookupOptions], list[int]] = {}
        for row, each in enumerate(asked):
            groups.setdefault((id(each.lookup.snapshot), each.lookup.k, each.lookup.options), []).append(row)
        for rows in groups.values():
            queries = [asked[row].query for row in rows]
            found = find(asked[rows[0]].lookup, queries, vectors[rows], self.scales)
            nearest.update(zip(rows, found, strict=True))
        return [nearest[row] for row in range(len(asked))]

    def _answer(self, asked: Sequence[_Asked], hits: Sequence[tuple[Hit, ...]]) -> list[QueryHits]:
        """Hits with the query as the tokenizer reads it (empty for a vector), kept for the next time."""
        read = [each for each in asked if each.query.vector is None]
        texts = iter(self.encoder.decode_queries([each.query.text for each in read], [each.token_ids for each in read]))
        answers = []
        for each, found in zip(asked, hits, strict=True):
            decoded = "" if each.query.vector is not None else next(texts)
            nothing = None if found else why_nothing(each.lookup, each.query)
            keys = filter_keys(each.lookup) if nothing is NothingFound.FILTER else NO_KEYS
            answers.append(QueryHits(found, decoded, nothing, keys, len(each.token_ids), each.unread_tokens))
            key = None if self._cache is None else each.key
            if self._cache is not None and key is not None:
                self._cache.put(key, answers[-1])
        return answers

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
