"""Finds names that several rows of a source have, with files instead of memory for what is long."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from retriever_svc.types import Int64

PARTITIONS = 64  # each is sorted in memory alone: 24 bytes a name, 8 MB for DPR's 21 million passages
FLUSH_NAMES = 2**16
RECORD = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<i8")])


class NameTable:
    """The names of rows as 128-bit hashes in files: at a billion names, two share one with probability 10^-21."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._directory = directory
        self._digests: list[bytes] = []
        self._rows: list[int] = []

    def add(self, name: str, row: int) -> None:
        """Say that a row has a name."""
        self._digests.append(hashlib.blake2b(name.encode(), digest_size=16).digest())
        self._rows.append(row)
        if len(self._rows) >= FLUSH_NAMES:
            self._flush()

    def repeated(self) -> Int64:
        """[n_pairs, 2]: rows with a name that an earlier row has, in order, each beside the first row that has it."""
        self._flush()
        pairs = [_repeated(np.fromfile(path, RECORD)) for path in sorted(self._directory.iterdir())]
        found = np.concatenate([*pairs, np.empty((0, 2), dtype=np.int64)])
        return found[np.argsort(found[:, 0], kind="stable")]

    def _flush(self) -> None:
        records = np.empty(len(self._rows), RECORD)
        hashes = np.frombuffer(b"".join(self._digests), dtype="<u8").reshape(-1, 2)
        records["high"], records["low"], records["row"] = hashes[:, 0], hashes[:, 1], self._rows
        partition = records["high"] % PARTITIONS
        for number in np.unique(partition):
            with (self._directory / f"{number:02}").open("ab") as file:
                records[partition == number].tofile(file)
        self._digests, self._rows = [], []


def _repeated(records: np.ndarray) -> Int64:
    ordered = records[np.lexsort((records["row"], records["low"], records["high"]))]
    new = np.ones(len(ordered), dtype=bool)
    new[1:] = (ordered["high"][1:] != ordered["high"][:-1]) | (ordered["low"][1:] != ordered["low"][:-1])
    first = ordered["row"][np.maximum.accumulate(np.where(new, np.arange(len(ordered)), 0))]
    pairs = np.stack([ordered["row"], first], axis=1)
    repeated: Int64 = pairs[pairs[:, 0] != pairs[:, 1]]
    return repeated
