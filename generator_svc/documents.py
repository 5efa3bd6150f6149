"""The documents of all sessions, each encoded once: who holds them, and which are kept for later ones. No torch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

TokenIds = tuple[int, ...]


@dataclass(eq=False)
class DocumentEntry:
    """One document's context. `state` is the engine's own and means nothing here."""

    token_ids: TokenIds
    encoded: bool = False
    holders: int = 0  # sessions, each as often as it has the document
    state: Any = None

    @property
    def n_tokens(self) -> int:
        """Tokens of the context."""
        return len(self.token_ids)


class DocumentPool:
    """Shares documents between sessions, and keeps those that nobody holds up to `keep_bytes`; 0 does neither.

    Documents are the same when the token ids of their contexts are. The encoder reads these ids and nothing else:
    passage and question, as the checkpoint joins them, cut to the length that the session asked for. It looks at no
    other document, and nothing in it is random. So equal ids mean equal states, the same passage under another question
    is another document, and ids in full, not a digest of them, mistake no document for another.
    """

    def __init__(self, keep_bytes: int, token_bytes: int) -> None:
        self._keep_bytes = keep_bytes
        self._token_bytes = token_bytes
        self._shared: dict[TokenIds, DocumentEntry] = {}
        self._kept: OrderedDict[DocumentEntry, None] = OrderedDict()  # held by nobody, least recently used first
        self._kept_tokens = 0

    @property
    def kept_bytes(self) -> int:
        """Bytes of the documents that no session holds."""
        return self._kept_tokens * self._token_bytes

    def hold(self, token_ids: TokenIds) -> tuple[DocumentEntry, bool]:
        """The document with these ids, held once more, and whether it was there: encoded, or to be for another."""
        entry = self._shared.get(token_ids) if self._keep_bytes else None
        found = entry is not None
        if entry is None:
            entry = DocumentEntry(token_ids)
            if self._keep_bytes:
                self._shared[token_ids] = entry
        elif not entry.holders:
            del self._kept[entry]
            self._kept_tokens -= entry.n_tokens
        entry.holders += 1
        return entry, found

    def release(self, entries: Sequence[DocumentEntry]) -> list[DocumentEntry]:
        """Each is held once less. Returns the evicted entries."""
        dropped = []
        for entry in entries:
            entry.holders -= 1
            if entry.holders:
                continue
            if entry.encoded and self._is_shared(entry) and entry.n_tokens * self._token_bytes <= self._keep_bytes:
                self._kept[entry] = None
                self._kept_tokens += entry.n_tokens
            else:
                self.distrust([entry])
                dropped.append(entry)
        while self.kept_bytes > self._keep_bytes:
            oldest, _ = self._kept.popitem(last=False)
            self._kept_tokens -= oldest.n_tokens
            del self._shared[oldest.token_ids]
            dropped.append(oldest)
        return dropped

    def distrust(self, entries: Sequence[DocumentEntry]) -> None:
        """Removes the documents from the cache. Sessions that hold them keep them."""
        for entry in entries:
            if self._is_shared(entry):
                del self._shared[entry.token_ids]

    def _is_shared(self, entry: DocumentEntry) -> bool:
        return self._shared.get(entry.token_ids) is entry
