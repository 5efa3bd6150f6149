"""The second half of a build: shards of the staged source, each embedded and written alone, in any process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ragserve.errors import InvalidInputError
from retriever_svc import knowledge
from retriever_svc.build.files import write_fragment
from retriever_svc.build.journal import Journal
from retriever_svc.build.staged import Staged
from retriever_svc.build.vectors import VectorFile
from retriever_svc.encoder import TextEncoder
from retriever_svc.loading import RetrievalOptions, load_passage_encoder
from retriever_svc.rows import TEXT_COLUMNS, VECTOR_COLUMN
from retriever_svc.types import Passage, Truncated

ENCODE_PASSAGES = 64  # embedded together, sorted by length
COPY_PASSAGES = 512  # vectors that are there already

Vectors: TypeAlias = NDArray[np.floating[Any]]


class Embedder(Protocol):
    """Where the vectors of passages come from."""

    batch_passages: int
    truncated: Truncated  # passages that the encoder does not read to their end, by FILE:LINE

    def __call__(self, batch: pa.RecordBatch) -> Vectors:
        """Vectors of staged passages, [n_passages, dim]."""


class EncodeTexts:
    """Vectors from the model's passage encoder."""

    batch_passages = ENCODE_PASSAGES

    def __init__(self, encoder: TextEncoder) -> None:
        self._encoder = encoder
        self.truncated = Truncated()

    def __call__(self, batch: pa.RecordBatch) -> Vectors:
        """Vectors of staged passages, float32 [n_passages, dim]."""
        columns = (batch.column(name).to_pylist() for name in ("id", "title", "text"))
        passages = [Passage(*row) for row in zip(*columns, strict=True)]

        def truncated(row: int) -> None:
            file, line = batch.column("file")[row].as_py(), batch.column("line")[row].as_py()
            self.truncated.add(f"{file}:{line} ({passages[row].id!r})")

        return self._encoder.encode_passages(passages, truncated)


class ReadVectors:
    """Vectors from a file, by row of the source."""

    batch_passages = COPY_PASSAGES

    def __init__(self, vectors: VectorFile) -> None:
        self._vectors = vectors
        self.truncated = Truncated()

    def __call__(self, batch: pa.RecordBatch) -> Vectors:
        """Vectors of staged passages, [n_passages, dim]."""
        return self._vectors.take(batch.column("row").to_numpy())


@dataclass(frozen=True)
class ShardPlan:
    """Everything that a process needs to make shards, and nothing that cannot be sent to it."""

    journal: Journal
    staged: Staged
    model: Path
    options: RetrievalOptions
    dimension: int
    precision: str
    encoder: str  # SHA-256 of its graph
    shard_passages: int

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-self.staged.stored // self.shard_passages)

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema of the knowledge base."""
        return knowledge.schema(self.dimension, self.precision, self.encoder)

    def embedder(self) -> Embedder:
        """What makes or reads the vectors, loaded."""
        if self.staged.vectors:
            return ReadVectors(self.staged.vectors)
        return EncodeTexts(load_passage_encoder(self.model, self.options)[0])


def write_shard(plan: ShardPlan, shard: int, embedder: Embedder, report: Callable[[int], None]) -> int:
    """Embed a shard, write its data file and record it as finished; the number of its passages.

    `report` is called with the number of passages embedded so far.

    Raises:
        InvalidInputError: a vector is too large for the precision.
        FailedPreconditionError: the disk is full, or the file cannot be written for another reason.
    """
    done = 0

    def batches() -> Iterator[pa.RecordBatch]:
        nonlocal done
        start = shard * plan.shard_passages
        stop = min(start + plan.shard_passages, plan.staged.stored)
        for batch in plan.staged.batches(start, stop, embedder.batch_passages):
            yield _to_rows(batch, embedder(batch), plan.schema)
            done += batch.num_rows
            report(done)

    embedder.truncated = Truncated()
    fragment = write_fragment(plan.journal.dataset, plan.schema, batches())
    plan.journal.finish(shard, done, fragment, embedder.truncated)
    return done


def _to_rows(batch: pa.RecordBatch, vectors: Vectors, schema: pa.Schema) -> pa.RecordBatch:
    """Staged passages and their vectors as rows of the knowledge base."""
    vector_type = schema.field(VECTOR_COLUMN).type
    with np.errstate(over="ignore"):
        stored = vectors.astype(vector_type.value_type.to_pandas_dtype())
    if not np.isfinite(stored).all():
        raise InvalidInputError("precision", f"a vector is too large for {stored.dtype.name}: store float32")
    columns = {name: batch.column(name) for name in TEXT_COLUMNS}
    columns[VECTOR_COLUMN] = pa.FixedSizeListArray.from_arrays(pa.array(stored.reshape(-1)), type=vector_type)
    return pa.record_batch([columns[name] for name in schema.names], schema=schema)
