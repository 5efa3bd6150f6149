"""The first half of a build: reads the source once, checks and splits it, and stores what shards are read from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa

from ragserve.errors import InvalidInputError
from ragserve.passage_rules import DEFAULT_LIMITS, PassageLimits
from ragserve.printable import counted
from retriever_svc.build.column_vectors import ColumnVectors
from retriever_svc.build.duplicates import NameTable
from retriever_svc.build.files import write_batches
from retriever_svc.build.lines import UnreadFileError, bad_row, skippable
from retriever_svc.build.reading import EMBEDDINGS, Notify
from retriever_svc.build.sources import SourcePassage, SourceRow, no_passages, split_row
from retriever_svc.build.staged import DROPPED, RAW_VECTORS, TEXTS, Staged, among, scan
from retriever_svc.build.vectors import VectorFile, open_npy, unpickle
from retriever_svc.splitting import Cut
from retriever_svc.types import LARGEST, Int64

COLUMNS = {
    "id": "id",
    "title": "title",
    "text": "text",
    "metadata": "metadata_json",
    "line": "line",
    "row": "row",
    "file": "file",
}
NUMBERS = ("line", "row")
SCHEMA = pa.schema([pa.field(name, pa.int64() if name in NUMBERS else pa.string(), nullable=False) for name in COLUMNS])
BATCH_ROWS, BATCH_CHARACTERS = 1024, 2**22
NAMED = 5  # bad rows that are quoted in the report


class Stager:
    """Reads a source into a directory. A bad row is raised, or counted and left out where `skip` says so."""

    def __init__(
        self,
        directory: Path,
        source: Path,
        cut: Cut | None,
        skip: bool,
        limits: PassageLimits = DEFAULT_LIMITS,
        no_column_vectors: str = "",
        notify: Notify = lambda _message: None,
    ) -> None:
        self._directory, self._source, self._cut, self._skip = directory, source, cut, skip
        self._limits, self._no_column_vectors, self._notify = limits, no_column_vectors, notify
        self._rows = self._stored = self._unread = self._unread_files = 0
        self._examples: list[str] = []

    def stage(self, rows: Iterable[SourceRow], embeddings: tuple[Path, ...], dimension: int) -> Staged:
        """Read, check and store everything; the record that says so is written last.

        Raises:
            InvalidInputError: a bad row or vector, a repeated id, no passages, or other numbers of rows and vectors.
        """
        names = NameTable(self._directory / "names")
        column = ColumnVectors(self._directory / RAW_VECTORS, dimension, self._no_column_vectors, self._notify)
        write_batches(self._directory / TEXTS, SCHEMA, self._batches(rows, names, column))
        self._check_some(self._stored)
        repeated = self._repeated(names.repeated())
        vectors = self._vectors(embeddings, dimension) if embeddings else column.finish(self._rows)
        where = str(embeddings[0]) if embeddings else f"column '{EMBEDDINGS}'"
        bad = self._unusable(vectors, where) if vectors else repeated[:0]
        dropped, passages = self._drop(np.union1d(repeated, bad))
        self._check_some(passages)
        skipped = self._unread + dropped
        examples, files = tuple(self._examples[:NAMED]), self._unread_files
        staged = Staged(self._directory, self._rows, self._stored, passages, skipped, examples, vectors, files)
        staged.save()
        return staged

    def _batches(self, rows: Iterable[SourceRow], names: NameTable, column: ColumnVectors) -> Iterator[pa.RecordBatch]:
        waiting: list[SourcePassage] = []
        characters = 0
        for passage in self._passages(rows, names, column):
            waiting.append(passage)
            characters += len(passage.text)
            if len(waiting) >= BATCH_ROWS or characters >= BATCH_CHARACTERS:
                yield self._batch(waiting)
                waiting, characters = [], 0
        if waiting:
            yield self._batch(waiting)

    def _passages(self, rows: Iterable[SourceRow], names: NameTable, column: ColumnVectors) -> Iterator[SourcePassage]:
        for row in rows:
            self._rows += 1
            try:
                passages = self._of_row(row, names, column)
            except InvalidInputError as error:
                self._unread += 1
                self._unread_files += isinstance(error, UnreadFileError)
                self._bad(error)
                continue
            yield from passages

    def _of_row(self, row: SourceRow, names: NameTable, column: ColumnVectors) -> list[SourcePassage]:
        """The passages of a row; its names and its vector are kept. Raises InvalidInputError for a bad row."""
        if isinstance(row, InvalidInputError):
            raise row
        column.add(row)
        passages = split_row(row, None if column.used else self._cut, self._limits)
        for name in dict.fromkeys((row.id, *(passage.id for passage in passages))):
            names.add(name, row.row)
        return passages

    def _batch(self, passages: list[SourcePassage]) -> pa.RecordBatch:
        self._stored += len(passages)
        columns = [pa.array([getattr(passage, name) for passage in passages]) for name in COLUMNS.values()]
        return pa.record_batch(columns, schema=SCHEMA)

    def _bad(self, error: InvalidInputError) -> None:
        """Raise, or keep the words of the first few."""
        if not self._skip:
            raise skippable(error)
        if len(self._examples) < NAMED:
            self._examples.append(error.message)

    def _check_some(self, passages: int) -> None:
        if not passages:
            raise no_passages(self._source, self._rows, self._examples)

    def _repeated(self, pairs: Int64) -> Int64:
        """The rows to leave out for a name that an earlier row has."""
        for row, first in pairs[:NAMED].tolist():
            later, earlier = self._stored_at(row), self._stored_at(first)
            name = later[0]["id"] if len(later) == 1 else later[0]["id"].rpartition("#")[0]
            same = earlier[0]["file"] == later[0]["file"]
            where = f"line {earlier[0]['line']}" if same else f"{earlier[0]['file']}:{earlier[0]['line']}"
            self._bad(bad_row(Path(later[0]["file"]), later[0]["line"], f"column 'id' is {name!r}, as in {where}"))
        return np.unique(pairs[:, 0])

    def _vectors(self, embeddings: tuple[Path, ...], dimension: int) -> VectorFile:
        if embeddings[0].suffix == ".npy":
            vectors = open_npy(embeddings[0])
        else:
            vectors = unpickle(embeddings, self._names(), self._directory / RAW_VECTORS, dimension)
        named = f"{embeddings[0]}" + (f" and {len(embeddings) - 1} more" if len(embeddings) > 1 else "")
        if vectors.dimension != dimension:
            raise InvalidInputError(
                "embeddings", f"{named}: vectors of width {vectors.dimension}; the model's encoder makes {dimension}"
            )
        if vectors.rows != self._rows:
            raise InvalidInputError(
                "embeddings",
                f"{named}: {counted(vectors.rows, 'vector')} for the {counted(self._rows, 'row')} of {self._source}",
            )
        return vectors

    def _unusable(self, vectors: VectorFile, embeddings: str) -> Int64:
        """The rows to leave out for their vectors."""
        rows = np.fromiter(vectors.unusable(), dtype=np.int64)
        for row in islice(rows.tolist(), NAMED):
            for passage in self._stored_at(row):
                where = f"{embeddings}: row {row} (passage {passage['id']!r}, line {passage['line']})"
                self._bad(InvalidInputError("embeddings", f"{where} holds NaN, infinity or a value beyond {LARGEST:g}"))
        return rows

    def _drop(self, rows: Int64) -> tuple[int, int]:
        """Store which rows are left out; the number of those that have passages, and of passages that are kept."""
        np.save(self._directory / DROPPED, rows)
        if not len(rows):
            return 0, self._stored
        dropped, kept, last = 0, 0, -1
        for batch in scan(self._directory, "row"):
            found = batch["row"].to_numpy()
            out = np.unique(found[among(found, rows)])
            kept += int((~among(found, rows)).sum())
            dropped += int((out > last).sum())
            last = int(found[-1])
        return dropped, kept

    def _stored_at(self, row: int) -> list[dict[str, Any]]:
        dataset = lance.dataset(str(self._directory / TEXTS))
        found: list[dict[str, Any]] = dataset.to_table(
            columns=["id", "line", "file"], filter=f"row = {row}"
        ).to_pylist()
        return found

    def _names(self) -> Iterator[tuple[int, str]]:
        """Row and id of every passage, in order."""
        for batch in scan(self._directory, "row", "id"):
            yield from zip(batch["row"].to_pylist(), batch["id"].to_pylist(), strict=True)
