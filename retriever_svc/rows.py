"""The rows of one version of a knowledge base, read by position: held in memory, or taken from disk each time.

A row has a stable id of Lance, which it keeps when its passage is replaced, and a stamp, the version that wrote it
last. Id and stamp together name a content: they say what two versions share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any, Protocol, Self

import lance
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retriever_svc.index.protocol import VectorSource
from retriever_svc.types import Float32, Int64, Passage

TEXT_COLUMNS = ["id", "title", "text", "metadata"]
VECTOR_COLUMN = "embedding"
ROW_ID, STAMP = "_rowid", "_row_last_updated_at_version"
FEW_ROWS = 64  # up to so many rows are read one by one, which takes less time than Arrow's take
BLOCK_ROWS = 16_384  # rows of one block of vectors: 64 MB at 1,024 float32 values
MOST_TEXT_BYTES = 2**31 - 1  # of a column in one piece: Arrow counts them in 32 bits


class RowKeys:
    """Ids and stamps of rows by position, and positions by id."""

    def __init__(self, row_ids: Int64, stamps: Int64) -> None:
        self.row_ids = row_ids
        self.stamps = stamps

    @classmethod
    def read(cls, dataset: lance.LanceDataset) -> RowKeys:
        """The keys of a version, in the order of its rows."""
        return cls.of(dataset.scanner(columns=[ROW_ID, STAMP], scan_in_order=True).to_table())

    @classmethod
    def of(cls, table: pa.Table) -> RowKeys:
        """The keys in a table with both columns."""
        columns = (table.column(name).to_numpy().astype(np.int64) for name in (ROW_ID, STAMP))
        return cls(*columns)

    def find(self, row_ids: Int64) -> Int64:
        """The position of each row id; -1 where it is not there."""
        if not len(self.row_ids):
            return np.full(len(row_ids), -1, np.int64)
        ordered, order = self._sorted
        places = np.minimum(np.searchsorted(ordered, row_ids), len(ordered) - 1)
        positions = places if order is None else order[places]
        return np.where(ordered[places] == row_ids, positions, -1)

    @cached_property
    def _sorted(self) -> tuple[Int64, Int64 | None]:
        """Ids in order, and the position of each; no positions where the rows are in order of id already."""
        if np.all(self.row_ids[1:] > self.row_ids[:-1]):
            return self.row_ids, None
        order = np.argsort(self.row_ids)
        return self.row_ids[order], order


class Rows(VectorSource, Protocol):
    """Passages, vectors and keys by position."""

    @property
    def keys(self) -> RowKeys:
        """Ids and stamps."""

    def passages(self, positions: Int64) -> list[Passage]:
        """The passages at these positions, in this order."""

    def texts(self, columns: list[str]) -> pa.Table:
        """All rows' columns (of TEXT_COLUMNS), in order of position."""

    def at(self, dataset: lance.LanceDataset) -> Self:
        """The same rows as a later version has them; rows that it has no more may not be asked for."""


class DiskRows:
    """Rows taken from the Lance dataset by id, in one random-access read for each call."""

    def __init__(self, dataset: lance.LanceDataset, keys: RowKeys | None = None) -> None:
        self._dataset = dataset
        self.keys = keys or RowKeys.read(dataset)
        self.size: int = len(self.keys.row_ids)
        self.dimension: int = dataset.schema.field(VECTOR_COLUMN).type.list_size
        self.array: Float32 | None = None

    def passages(self, positions: Int64) -> list[Passage]:
        """The passages at these positions, in this order."""
        return _to_passages(self._take(positions, TEXT_COLUMNS))

    def vectors(self, positions: Int64) -> Float32:
        """The vectors at these positions, [n_positions, dim], in this order."""
        table = self._take(positions, [VECTOR_COLUMN])
        return _to_vectors(table.column(VECTOR_COLUMN), self.dimension).astype(np.float32, copy=False)

    def vector_blocks(self) -> Iterator[Float32]:
        """All vectors in order of position, as blocks [n_rows, dim]."""
        for batch in self._dataset.to_batches(columns=[VECTOR_COLUMN], batch_size=BLOCK_ROWS, scan_in_order=True):
            yield _to_vectors(batch.column(VECTOR_COLUMN), self.dimension).astype(np.float32, copy=False)

    def texts(self, columns: list[str]) -> pa.Table:
        """All rows' columns, in order of position; null for rows that this version has no more."""
        table = self._dataset.scanner(columns=[*columns, ROW_ID], scan_in_order=True).to_table()
        places = np.full(self.size, -1, np.int64)
        positions = self.keys.find(table.column(ROW_ID).to_numpy().astype(np.int64))
        places[positions[positions >= 0]] = np.flatnonzero(positions >= 0)
        return table.select(columns).take(pa.array(places, mask=places < 0))

    def at(self, dataset: lance.LanceDataset) -> DiskRows:
        """The same rows, read through a later version: files of the earlier one may be removed then."""
        return DiskRows(dataset, self.keys)

    def _take(self, positions: Int64, columns: list[str]) -> pa.Table:
        row_ids: list[int] = self.keys.row_ids[positions].tolist()
        return self._dataset._take_rows(row_ids, columns=columns)


class MemoryRows:
    """Rows held in memory as they are stored: an Arrow table and an array [n_rows, dim]."""

    def __init__(self, texts: pa.Table, vectors: NDArray[np.floating[Any]], keys: RowKeys) -> None:
        self.keys = keys
        self.size: int = len(keys.row_ids)
        self.dimension: int = vectors.shape[1]
        self._texts = texts
        self._vectors = vectors
        as_indexed = vectors.dtype == np.float32 and vectors.flags.c_contiguous
        self.array: Float32 | None = vectors if as_indexed else None

    @classmethod
    def read(cls, dataset: lance.LanceDataset) -> MemoryRows:
        """All rows of a version."""
        columns = [*TEXT_COLUMNS, VECTOR_COLUMN, ROW_ID, STAMP]
        return cls.of(dataset.scanner(columns=columns, scan_in_order=True).to_table())

    @classmethod
    def take(cls, dataset: lance.LanceDataset, row_ids: Int64) -> MemoryRows:
        """The rows of a version that have these ids."""
        columns = [*TEXT_COLUMNS, VECTOR_COLUMN, ROW_ID, STAMP]
        return cls.of(dataset._take_rows(row_ids.tolist(), columns=columns))

    @classmethod
    def of(cls, table: pa.Table) -> MemoryRows:
        """The rows of a table that has the columns of the schema and the keys."""
        dimension = table.schema.field(VECTOR_COLUMN).type.list_size
        vectors = _to_vectors(table.column(VECTOR_COLUMN), dimension)
        return cls(table.select(TEXT_COLUMNS).combine_chunks(), vectors, RowKeys.of(table))

    def passages(self, positions: Int64) -> list[Passage]:
        """The passages at these positions, in this order."""
        if len(positions) > FEW_ROWS:
            return _to_passages(self._texts.take(positions))
        columns = self._columns
        return [Passage(*(column(position) for column in columns)) for position in positions.tolist()]

    def vectors(self, positions: Int64) -> Float32:
        """The vectors at these positions, [n_positions, dim], in this order."""
        return self._vectors[positions].astype(np.float32, copy=False)

    def vector_blocks(self) -> Iterator[Float32]:
        """All vectors in order of position, as blocks [n_rows, dim]."""
        for start in range(0, self.size, BLOCK_ROWS):
            yield self._vectors[start : start + BLOCK_ROWS].astype(np.float32, copy=False)

    def texts(self, columns: list[str]) -> pa.Table:
        """All rows' columns, in order of position."""
        return self._texts.select(columns)

    @cached_property
    def _columns(self) -> list[Callable[[int], str]]:
        """The columns of texts, by position."""
        return [_reader(self._texts.column(name)) for name in TEXT_COLUMNS]

    @cached_property
    def matrix(self) -> Float32:
        """All vectors in float32, [n_rows, dim]."""
        return np.ascontiguousarray(self._vectors, dtype=np.float32)

    def at(self, dataset: lance.LanceDataset) -> MemoryRows:
        """The same rows: what is in memory does not change."""
        return self

    def gathered(self, behind: MemoryRows, positions: Int64, keys: RowKeys) -> MemoryRows | None:
        """The rows at these positions, in this order, under new keys; those of `behind` follow this one's.

        None where a column's texts are too long for one piece.
        """
        if self._texts.nbytes + behind._texts.nbytes > MOST_TEXT_BYTES:
            return None
        vectors = np.empty((len(positions), self.dimension), self._vectors.dtype)
        np.take(self._vectors, np.minimum(positions, self.size - 1), axis=0, out=vectors, mode="clip")
        others = np.flatnonzero(positions >= self.size)
        vectors[others] = behind._vectors[positions[others] - self.size]
        columns = (
            pa.chunked_array([*self._texts.column(name).chunks, *behind._texts.column(name).chunks], pa.string())
            for name in TEXT_COLUMNS
        )
        texts = pa.table([column.take(pa.array(positions)) for column in columns], names=TEXT_COLUMNS)
        return MemoryRows(texts.combine_chunks(), vectors, keys)

    def without(self, positions: Int64) -> MemoryRows:
        """The rows but for those at these positions."""
        kept = np.delete(np.arange(self.size), positions)
        keys = RowKeys(self.keys.row_ids[kept], self.keys.stamps[kept])
        return MemoryRows(self._texts.take(kept), self._vectors[kept], keys)

    def followed_by(self, other: MemoryRows) -> MemoryRows:
        """These rows and then the other's."""
        keys = (
            np.concatenate([self.keys.row_ids, other.keys.row_ids]),
            np.concatenate([self.keys.stamps, other.keys.stamps]),
        )
        texts = pa.concat_tables([self._texts, other._texts]).combine_chunks()
        return MemoryRows(texts, np.concatenate([self._vectors, other._vectors]), RowKeys(*keys))


def _reader(column: pa.ChunkedArray) -> Callable[[int], str]:
    """The text at a position: of a whole column straight from Arrow's buffers, a fifth of the time of its scalars."""
    if column.num_chunks != 1 or column.type != pa.string() or column.null_count:
        return lambda position: str(column[position].as_py())
    array = column.chunk(0)
    _, ends, content = array.buffers()
    offsets = memoryview(ends).cast("B").cast("i")[array.offset :]
    data = memoryview(content or b"").cast("B")
    return lambda position: str(data[offsets[position] : offsets[position + 1]], "utf-8")


def _to_passages(table: pa.Table) -> list[Passage]:
    columns = (table.column(name).to_pylist() for name in TEXT_COLUMNS)
    return [Passage(*row) for row in zip(*columns, strict=True)]


def _to_vectors(column: Any, dimension: int) -> NDArray[np.floating[Any]]:
    """A fixed-size-list column as an array [n_rows, dim] of its own precision."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts: list[NDArray[np.floating[Any]]] = [
        chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimension) for chunk in chunks
    ]
    if not parts:
        return np.empty((0, dimension), np.float32)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
