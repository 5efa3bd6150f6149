"""One version of the knowledge base, ready to be searched: an index over a base, and what changed since.

The base is the index over the rows of one version. A later version is that base without the rows that it lost or
replaced (not `alive`), and an overlay of rows that it added or replaced, compared with the query one by one. So a
commit is searchable as soon as its few rows are read, and the index need not know removal or additions.
"""

from __future__ import annotations

import weakref
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

import lance
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retriever_svc.filters import Filter, MetadataColumns
from retriever_svc.index import Index, SearchOptions
from retriever_svc.lexical import Bm25Index, indexed_text
from retriever_svc.live.changes import Changes, compare
from retriever_svc.rows import MemoryRows, RowKeys, Rows
from retriever_svc.types import Float32, Int64, Passage

METADATA = ["metadata"]
MOST_ALLOWED = 0.9  # from this part of the rows on, those that may not be returned are left out afterwards
Mask = NDArray[np.bool_]


class Base:
    """An index over all rows of one version, and their metadata by column."""

    def __init__(self, version: int, rows: Rows, index: Index, words: Bm25Index | None = None) -> None:
        self.version = version
        self.rows = rows
        self.index = index
        self.words = words
        weakref.finalize(self, index.close)  # when no version is over it any more

    @cached_property
    def metadata(self) -> MetadataColumns:
        """The metadata by column: read when the first filter asks for it."""
        return _columns(self.rows)

    @property
    def filtered(self) -> bool:
        """Whether a filter has asked for the metadata."""
        return "metadata" in self.__dict__


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A version as base, living rows of the base [n_base] and overlay. Positions of the overlay follow the base's."""

    version: int
    base: Base
    rows: Rows  # of the base, as this version reads them
    alive: Mask | None  # None: all
    overlay: MemoryRows
    words: Bm25Index | None = None  # of all passages, where search by words is wanted

    @classmethod
    def of_base(cls, base: Base) -> Snapshot:
        """The version that the base is an index of."""
        return cls(base.version, base, base.rows, None, _no_rows(base.index.dimension), base.words)

    @cached_property
    def dead(self) -> int:
        """Rows of the base that are not in this version."""
        return 0 if self.alive is None else int(self.alive.size - np.count_nonzero(self.alive))

    @property
    def size(self) -> int:
        """Number of passages."""
        return self.base.index.size - self.dead + self.overlay.size

    @property
    def changed(self) -> int:
        """Rows that the base does not have, or has in vain."""
        return self.dead + self.overlay.size

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return self.base.index.dimension

    def vectors(self, positions: Int64) -> Float32:
        """The vectors at these positions, [n_positions, dim], in this order."""
        in_base = positions < self.base.index.size
        if in_base.all():
            return self.rows.vectors(positions)
        vectors = np.empty((len(positions), self.dimension), np.float32)
        vectors[in_base] = self.rows.vectors(positions[in_base])
        vectors[~in_base] = self.overlay.vectors(positions[~in_base] - self.base.index.size)
        return vectors

    def passages(self, positions: Int64) -> list[Passage]:
        """The passages at these positions, in this order."""
        in_base = positions < self.base.index.size
        if in_base.all():
            return self.rows.passages(positions)
        base = iter(self.rows.passages(positions[in_base]))
        added = iter(self.overlay.passages(positions[~in_base] - self.base.index.size))
        return [next(base if inside else added) for inside in in_base]

    def row_ids(self, positions: Int64) -> Int64:
        """The stable row ids at these positions: what settles ties, the same on every replica."""
        in_base = positions < self.base.index.size
        if in_base.all():
            return self.base.rows.keys.row_ids[positions]
        ids = np.empty(len(positions), np.int64)
        ids[in_base] = self.base.rows.keys.row_ids[positions[in_base]]
        ids[~in_base] = self.overlay.keys.row_ids[positions[~in_base] - self.base.index.size]
        return ids

    def locate(self, row_ids: Int64) -> Int64:
        """The positions of rows of this version, by stable row id."""
        in_overlay = self.overlay.keys.find(row_ids)
        return np.where(in_overlay >= 0, in_overlay + self.base.index.size, self.base.rows.keys.find(row_ids))

    def from_memory(self, dataset: lance.LanceDataset) -> MemoryRows | None:
        """All rows of this version in the order of its dataset, for a new base: only the keys are read from disk.

        None where the base's rows are on disk, or the dataset's keys say that it is not what is loaded.
        """
        base, overlay = self.base.rows, self.overlay
        if not isinstance(base, MemoryRows) or not base.size:
            return None
        keys = RowKeys.read(dataset)
        positions = self.locate(keys.row_ids)
        stamps = np.concatenate([base.keys.stamps, overlay.keys.stamps])
        if (positions < 0).any() or (stamps[positions] != keys.stamps).any():
            return None
        return base.gathered(overlay, positions, keys)

    def masks(self, wanted: Filter) -> tuple[Mask | None, Mask | None]:
        """Which rows of base and overlay a filter lets through; None: all."""
        if not wanted.conditions:
            return self.alive, None
        matching = self._base_metadata.mask(wanted)
        alive = matching if self.alive is None else matching & self.alive
        return alive, self._overlay_metadata.mask(wanted)

    @property
    def filterable(self) -> bool:
        """Whether the metadata is parsed, so that a filter need not wait for it."""
        parsed = (self.__dict__.get(name) for name in ("_base_metadata", "_overlay_metadata"))
        return all(columns is not None and columns.loaded for columns in parsed)

    def metadata_keys(self) -> Counter[str]:
        """How many passages have a value that can be filtered, by key."""
        return self._base_metadata.keys(self.alive) + self._overlay_metadata.keys()

    def nested_keys(self) -> Counter[str]:
        """How many passages have a list or an object, by key."""
        return self._base_metadata.nested(self.alive) + self._overlay_metadata.nested()

    def only_numbers(self, key: str) -> bool:
        """Whether all values of a key that can be filtered read as numbers."""
        return self._base_metadata.only_numbers(key) and self._overlay_metadata.only_numbers(key)

    def read_metadata(self) -> None:
        """Parse the metadata for filters: about two seconds for a million rows, once for each base.

        Raises:
            DataLossError: a row's metadata is not a JSON object.
        """
        self._base_metadata.load()
        self._overlay_metadata.load()

    @cached_property
    def _base_metadata(self) -> MetadataColumns:
        try:
            return self.base.metadata
        except (OSError, ValueError):  # the base's files are removed; those of this version hold all that is alive
            return _columns(self.rows)

    @cached_property
    def _overlay_metadata(self) -> MetadataColumns:
        return _columns(self.overlay)

    def advanced(self, dataset: lance.LanceDataset, changes: Changes) -> Snapshot:
        """The version of `dataset`, which differs from this one by `changes`."""
        in_base, in_overlay = self.base.rows.keys.find(changes.gone), self.overlay.keys.find(changes.gone)
        alive = np.ones(self.base.index.size, np.bool_) if self.alive is None else self.alive.copy()
        alive[in_base[in_base >= 0]] = False
        kept = self.overlay.without(in_overlay[in_overlay >= 0]) if (in_overlay >= 0).any() else self.overlay
        overlay = kept.followed_by(changes.rows) if kept.size else changes.rows
        words = self.words and _updated(self.words, changes.gone, changes.rows)
        return self._replaced(dataset, alive, overlay if changes.rows.size else kept, words)

    def derived(self, dataset: lance.LanceDataset, most_changed: int) -> Snapshot | None:
        """Any version of the same knowledge base over the same base; None where more than that many rows differ."""
        difference = compare(self.base.rows.keys, RowKeys.read(dataset))
        dead = self.base.index.size - int(np.count_nonzero(difference.kept))
        if dead + len(difference.others) > most_changed:
            return None
        others = MemoryRows.take(dataset, difference.others)
        gone = self.base.rows.keys.row_ids[~difference.kept]
        words = self.base.words and _updated(self.base.words, gone, others)
        return self._replaced(dataset, difference.kept, others, words)

    def _replaced(
        self, dataset: lance.LanceDataset, alive: Mask, overlay: MemoryRows, words: Bm25Index | None
    ) -> Snapshot:
        rows = self.base.rows.at(dataset)
        return Snapshot(int(dataset.version), self.base, rows, None if alive.all() else alive, overlay, words)


class View:
    """A snapshot as one search may see it: what a filter lets through, searched with the request's parameters."""

    def __init__(self, snapshot: Snapshot, wanted: Filter, nprobe: int = 0, ef_search: int = 0) -> None:
        self.snapshot = snapshot
        self._base, self._overlay = snapshot.masks(wanted)
        self._options = SearchOptions(self._base, nprobe, ef_search)
        n_base = snapshot.base.index.size if self._base is None else int(np.count_nonzero(self._base))
        n_overlay = snapshot.overlay.size if self._overlay is None else int(np.count_nonzero(self._overlay))
        self._n_base = n_base
        self.size = n_base + n_overlay

    def positions(self) -> Int64:
        """Every position that this search may return."""
        first = self.snapshot.base.index.size
        base = np.arange(first) if self._base is None else np.flatnonzero(self._base)
        overlay = np.arange(self.snapshot.overlay.size) if self._overlay is None else np.flatnonzero(self._overlay)
        return np.concatenate([base, overlay + first])

    def lets_through(self, positions: Int64) -> Mask:
        """Which of the positions this search may return, [n_positions]."""
        first, allowed = self.snapshot.base.index.size, np.ones(len(positions), np.bool_)
        for mask, here, start in ((self._base, positions < first, 0), (self._overlay, positions >= first, first)):
            if mask is not None:
                allowed[here] = mask[positions[here] - start]
        return allowed

    def vectors(self, positions: Int64) -> Float32:
        """The vectors at these positions, [n_positions, dim], in this order."""
        return self.snapshot.vectors(positions)

    def search(self, queries: Float32, n_candidates: int) -> tuple[Float32, Int64]:
        """Scores and positions, both [n_queries, n_candidates], best first; position -1 where nothing was found."""
        if self.size == self._n_base:
            return self._search_base(queries, min(n_candidates, self._n_base))
        parts = [self._search_overlay(queries, n_candidates)]
        if self._n_base:
            parts.insert(0, self._search_base(queries, min(n_candidates, self._n_base)))
        scores, positions = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
        scores = np.where(positions >= 0, scores, -np.inf)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :n_candidates]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(positions, order, axis=1)

    def _search_base(self, queries: Float32, n_candidates: int) -> tuple[Float32, Int64]:
        """The best of the base that may be returned.

        FAISS compares a batch of queries as one matrix product only with all rows, four times as fast: so where few
        rows may not be returned, it is asked for more, and they are left out here.
        """
        index, allowed = self.snapshot.base.index, self._base
        if allowed is None or not index.exact or self._n_base < MOST_ALLOWED * index.size:
            return index.search(queries, n_candidates, self._options)
        scores, positions = index.search(queries, min(index.size, 2 * n_candidates))
        kept_out = (positions < 0) | ~allowed[positions]
        if (np.count_nonzero(~kept_out, axis=1) < n_candidates).any():
            return index.search(queries, n_candidates, self._options)
        order = np.argsort(kept_out, axis=1, kind="stable")[:, :n_candidates]
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(positions, order, axis=1)

    def _search_overlay(self, queries: Float32, n_candidates: int) -> tuple[Float32, Int64]:
        """The best of the overlay: compared with every row of it that may be returned."""
        overlay, first = self.snapshot.overlay, self.snapshot.base.index.size
        rows = np.arange(overlay.size) if self._overlay is None else np.flatnonzero(self._overlay)
        scores = queries @ (overlay.matrix if self._overlay is None else overlay.matrix[rows]).T
        if len(rows) > n_candidates:
            best = np.argpartition(-scores, n_candidates - 1, axis=1)[:, :n_candidates]
            return np.take_along_axis(scores, best, axis=1), rows[best] + first
        return scores, np.broadcast_to(rows + first, scores.shape)


def index_words(rows: Rows) -> Bm25Index:
    """The index of words over all rows."""
    return Bm25Index.build([(rows.keys.row_ids, _indexed(rows))])


def _updated(words: Bm25Index, gone: Int64, rows: MemoryRows) -> Bm25Index:
    return words.updated(gone, rows.keys.row_ids, _indexed(rows))


def _indexed(rows: Rows) -> list[str]:
    texts = rows.texts(["title", "text"])
    pairs = zip(texts.column("title").to_pylist(), texts.column("text").to_pylist(), strict=True)
    return [indexed_text(title, text) for title, text in pairs]


def _columns(rows: Rows) -> MetadataColumns:
    return MetadataColumns(pc.fill_null(rows.texts(METADATA).column(0), ""))


def _no_rows(dimension: int) -> MemoryRows:
    texts = pa.table({name: pa.array([], pa.string()) for name in ("id", "title", "text", "metadata")})
    nothing = np.empty(0, np.int64)
    return MemoryRows(texts, np.empty((0, dimension), np.float32), RowKeys(nothing, nothing))
