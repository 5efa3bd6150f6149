"""An exact, bounded cache of what was found for a query: a cached reply is the one that would be computed again.

The key is the token ids of the query, not its text: two texts with the same tokens have the same vector and the same
decoded query, whatever case or spaces the tokenizer left out, and no other normalization is certain of that. The
version of the knowledge base, k and every other option of the search are part of the key, so nothing has to be dropped
when the knowledge changes: results of old versions fall out as new ones come in.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ragserve.arguments import check_range
from ragserve.serving.metrics import Metrics

Value = TypeVar("Value")


@dataclass(frozen=True)
class QueryKey:
    """What decides a reply. `options` holds whatever else the search was told (hashable, compared by value)."""

    token_ids: tuple[int, ...]
    version: int
    k: int
    options: Hashable = None

    @classmethod
    def of(cls, token_ids: Sequence[int], version: int, k: int, options: Hashable = None) -> QueryKey:
        """The key of a query as `TextEncoder.tokenize_queries` reads it."""
        return cls(tuple(token_ids), version, k, options)


class QueryCache(Generic[Value]):
    """The most recently used values, at most `max_entries`; 0 keeps none. Safe to call from several threads.

    Values are handed out as they are: store what nobody changes (frozen dataclasses, tuples).
    """

    def __init__(self, max_entries: int, metrics: Metrics) -> None:
        """Make an empty cache with its counters. Raises InvalidInputError when `max_entries` is below 0."""
        check_range("query_cache_entries", max_entries, 0)
        self._max_entries = max_entries
        self._entries: OrderedDict[QueryKey, Value] = OrderedDict()
        self._lock = threading.Lock()
        self._hits = metrics.counter("ragserve_query_cache_hits_total", "Queries answered from the cache.")
        self._misses = metrics.counter("ragserve_query_cache_misses_total", "Queries that the cache did not hold.")

    def __len__(self) -> int:
        """Entries held now."""
        with self._lock:
            return len(self._entries)

    @property
    def enabled(self) -> bool:
        """Whether anything is ever kept."""
        return self._max_entries > 0

    def get(self, key: QueryKey) -> Value | None:
        """The value kept for a key, which becomes the most recently used, or None. Counted, unless disabled."""
        if not self.enabled:
            return None
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(key)
        (self._misses if found is None else self._hits).inc()
        return found

    def put(self, key: QueryKey, value: Value) -> None:
        """Keep a value; the least recently used goes when there are too many."""
        if not self.enabled:
            return
        with self._lock:
            self._entries[key] = value
            self._entries.move_to_end(key)
            if len(self._entries) > self._max_entries:
                self._entries.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
