"""A source that was read, checked and split, as a Lance dataset that shards are read from in any order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ragserve.printable import counted
from retriever_svc.build.files import unfinished_work, write_atomically
from retriever_svc.build.lines import skipped_note
from retriever_svc.build.vectors import VectorFile
from retriever_svc.types import Int64

TEXTS, RECORD, DROPPED, RAW_VECTORS = "texts.lance", "staged.json", "dropped.npy", "vectors.raw"
SCAN_ROWS = 8192


@dataclass(frozen=True)
class Staged:
    """A source in a directory. Its rows count from 0, bad ones included; each has one or more stored passages."""

    directory: Path
    rows: int  # of the source
    stored: int  # passages in the dataset
    passages: int  # those of them that are to be kept
    skipped: int  # rows left out
    examples: tuple[str, ...]  # what was wrong with the first of them
    vectors: VectorFile | None  # by row
    files: int = 0  # whole files left out, which are among `rows` and `skipped`

    def batches(self, start: int, stop: int, size: int) -> Iterator[pa.RecordBatch]:
        """The passages to keep among those stored at `start` to `stop`, in order, at most `size` at a time."""
        with unfinished_work(self.directory):
            dropped: Int64 = np.load(self.directory / DROPPED, mmap_mode="r")
            dataset = lance.dataset(str(self.directory / TEXTS))
            for batch in dataset.to_batches(offset=start, limit=stop - start, batch_size=size, scan_in_order=True):
                kept = batch.filter(pa.array(~among(batch.column("row").to_numpy(), dropped)))
                if kept.num_rows:
                    yield kept

    def notes(self) -> Iterator[str]:
        """What was skipped, a line for each reason, and what was read."""
        if self.skipped:
            skipped, rows = self.skipped - self.files, self.rows - self.files
            named = f"{skipped:,} of {counted(rows, 'row')}" if skipped else ""
            yield skipped_note(named, self.files, self.skipped, self.examples)
        yield f"read {counted(self.rows - self.skipped, 'row')} as {counted(self.passages, 'passage')}"

    def save(self) -> None:
        """Record that everything is here."""
        write_atomically(self.directory / RECORD, json.dumps(asdict(self), default=str))


def load_staged(directory: Path, embeddings: Sequence[Path] = ()) -> Staged | None:
    """What an earlier build staged here completely; None when none did.

    `embeddings` are this build's files, with the same content as the earlier one's, whatever stands under the names
    that those had.
    """
    if not (directory / RECORD).exists():
        return None
    with unfinished_work(directory):
        body = json.loads((directory / RECORD).read_text(encoding="utf-8"))
        path = embeddings[0] if embeddings and embeddings[0].suffix == ".npy" else directory / RAW_VECTORS
        vectors = body["vectors"] and VectorFile(**{**body["vectors"], "path": path})
        return Staged(**{**body, "directory": directory, "examples": tuple(body["examples"]), "vectors": vectors})


def scan(directory: Path, *columns: str) -> Iterator[dict[str, Any]]:
    """Columns of all stored passages, in order, a batch at a time."""
    with unfinished_work(directory):
        dataset = lance.dataset(str(directory / TEXTS))
        for batch in dataset.to_batches(columns=list(columns), batch_size=SCAN_ROWS, scan_in_order=True):
            yield {name: batch.column(name) for name in columns}


def among(rows: Int64, chosen: Int64) -> NDArray[np.bool_]:
    """Which of the rows are among `chosen`, which is in ascending order; [n_rows]."""
    if not len(chosen):
        return np.zeros(len(rows), dtype=np.bool_)
    places = np.minimum(np.searchsorted(chosen, rows), len(chosen) - 1)
    return np.asarray(chosen[places] == rows)
