"""The rows of one version of a knowledge base, read by position: held in memory, or taken from disk each time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import lance
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retriever_svc.index.protocol import VectorSource
from retriever_svc.types import Float32, Int64, Passage

TEXT_COLUMNS = ["id", "title", "text", "metadata"]
VECTOR_COLUMN = "embedding"
BLOCK_ROWS = 16_384  # rows of one block of vectors: 64 MB at 1,024 float32 values


class Rows(VectorSource, Protocol):
    """Passages and their vectors by position."""

    def passages(self, positions: Int64) -> list[Passage]:
        """The passages at these positions, in this order."""


class DiskRows:
    """Rows taken from the Lance dataset, in one random-access read for each call."""

    def __init__(self, dataset: lance.LanceDataset) -> None:
        self._dataset = dataset
        self.size: int = dataset.count_rows()
        self.dimension: int = dataset.schema.field(VECTOR_COLUMN).type.list_size

    def passages(self, positions: Int64) -> list[Passage]:
        """The passages at these positions, in this order."""
        return _to_passages(self._dataset.take(positions.tolist(), columns=TEXT_COLUMNS))

    def vectors(self, positions: Int64) -> Float32:
        """The vectors at these positions, [n_positions, dim], in this order."""
        table = self._dataset.take(positions.tolist(), columns=[VECTOR_COLUMN])
        return _to_vectors(table.column(VECTOR_COLUMN), self.dimension).astype(np.float32)

    def vector_blocks(self) -> Iterator[Float32]:
        """All vectors in order of position, as blocks [n_rows, dim]."""
        for batch in self._dataset.to_batches(columns=[VECTOR_COLUMN], batch_size=BLOCK_ROWS, scan_in_order=True):
            yield _to_vectors(batch.column(VECTOR_COLUMN), self.dimension).astype(np.float32)


class MemoryRows:
    """Rows held in memory as they are stored: an Arrow table and an array [n_rows, dim]."""

    def __init__(self, dataset: lance.LanceDataset) -> None:
        table = dataset.to_table(columns=[*TEXT_COLUMNS, VECTOR_COLUMN], scan_in_order=True)
        self.size: int = table.num_rows
        self.dimension: int = dataset.schema.field(VECTOR_COLUMN).type.list_size
        self._texts = table.select(TEXT_COLUMNS).combine_chunks()
        self._vectors = _to_vectors(table.column(VECTOR_COLUMN), self.dimension)

    def passages(self, positions: Int64) -> list[Passage]:
        """The passages at these positions, in this order."""
        return _to_passages(self._texts.take(positions))

    def vectors(self, positions: Int64) -> Float32:
        """The vectors at these positions, [n_positions, dim], in this order."""
        return self._vectors[positions].astype(np.float32)

    def vector_blocks(self) -> Iterator[Float32]:
        """All vectors in order of position, as blocks [n_rows, dim]."""
        for start in range(0, self.size, BLOCK_ROWS):
            yield self._vectors[start : start + BLOCK_ROWS].astype(np.float32)


def _to_passages(table: pa.Table) -> list[Passage]:
    columns = (table.column(name).to_pylist() for name in TEXT_COLUMNS)
    return [Passage(*row) for row in zip(*columns, strict=True)]


def _to_vectors(column: Any, dimension: int) -> NDArray[np.floating[Any]]:
    """A fixed-size-list column as an array [n_rows, dim] of its own precision."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    parts: list[NDArray[np.floating[Any]]] = [
        chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, dimension) for chunk in chunks
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
