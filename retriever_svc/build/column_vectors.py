"""Keeps the vectors of a source's column `embeddings`, where they fit the model's encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ragserve.printable import counted
from retriever_svc.build.lines import bad_row
from retriever_svc.build.reading import EMBEDDINGS, Notify
from retriever_svc.build.sources import SourcePassage
from retriever_svc.build.vectors import VectorFile

FLUSH_BYTES = 2**20


class ColumnVectors:
    """A file of vectors, by row of the source. The first passage says whether they are used: then all must have one."""

    def __init__(self, path: Path, dimension: int, unused: str, notify: Notify) -> None:
        """`unused`: why the vectors of the column are left out; empty: they are used if they fit."""
        self._path, self._dimension, self._unused, self._notify = path, dimension, unused, notify
        self._waiting = bytearray()
        self._rows = 0  # written or waiting
        self._told = False
        self.used: bool | None = None  # None: no passage was seen

    def add(self, passage: SourcePassage) -> None:
        """Keep the vector of a passage. Raises InvalidInputError where vectors are used and this one does not fit."""
        if self.used is None:
            self.used = self._decide(passage)
        vector = passage.vector
        if not self.used:
            if vector is not None and not self._told:
                self._tell(f"column '{EMBEDDINGS}' is left out: the first passage has no vector")
            return
        if vector is None or vector.shape != (self._dimension,):
            found = "is missing" if vector is None else f"has {counted(len(vector), 'value')}"
            raise bad_row(
                Path(passage.file),
                passage.line,
                f"column '{EMBEDDINGS}' {found}; the vectors of the other rows have {self._dimension}",
            )
        self._write(passage.row, vector)

    def _tell(self, message: str) -> None:
        self._told = True
        self._notify(message)

    def finish(self, rows: int) -> VectorFile | None:
        """The file, for a source of so many rows; None where vectors are not used."""
        if not self.used:
            return None
        self._fill(rows)
        self._flush()
        return VectorFile(self._path, rows, self._dimension, "<f4", 0)

    def _decide(self, passage: SourcePassage) -> bool:
        if passage.vector is None:
            return False
        width = len(passage.vector)
        values = counted(width, "value")
        if self._unused:
            self._tell(f"column '{EMBEDDINGS}' is left out: {self._unused}")
        elif width != self._dimension:
            self._tell(
                f"column '{EMBEDDINGS}' is left out: it has vectors of {values}, and the model's encoder makes "
                f"{self._dimension}"
            )
        else:
            self._tell(
                f"the vectors are those of the column '{EMBEDDINGS}', {values} each; the texts are not embedded. "
                f"If another model made them, leave the column out (--without-column {EMBEDDINGS})"
            )
            return True
        return False

    def _write(self, row: int, vector: np.ndarray) -> None:
        self._fill(row)
        with np.errstate(over="ignore"):
            self._waiting += vector.astype("<f4").tobytes()
        self._rows += 1
        if len(self._waiting) >= FLUSH_BYTES:
            self._flush()

    def _fill(self, row: int) -> None:
        """Write zeros for the rows before this one that have no passage."""
        self._waiting += bytes(4 * self._dimension * (row - self._rows))
        self._rows = row

    def _flush(self) -> None:
        with self._path.open("ab") as file:
            file.write(self._waiting)
        self._waiting = bytearray()
