"""Checksums of the files that hold the rows of a knowledge base.

Lance notices a file that is cut short or gone, but a flipped bit in the middle only where it makes the file unreadable:
most of them change a text or a vector, and nobody is told. So each writer leaves the SHA-256 of its files beside them,
and who reads a version compares. A file without a checksum (of an older ragserve, or of a writer that was killed
between its commit and this) is taken as it is until the next commit.
"""

from __future__ import annotations

import logging
import os
import threading
from functools import cache
from pathlib import Path

import lance

from ragserve.checkpoint import sha256_of
from ragserve.errors import DataLossError
from ragserve.serving.logs import fields
from retriever_svc.knowledge import DATASET_NAME

CHECKSUMS_NAME = "checksums"
DATA, DELETIONS = "data", "_deletions"
HEX_DIGITS = 64

log = logging.getLogger(__name__)

Seen = tuple[int, int]  # size and time of change of a file whose checksum was right


class FileChecks:
    """The files of one knowledge base and their checksums. Safe to call from several threads.

    A file is hashed when it is first seen, and again when its size or time of change is another.
    """

    def __init__(self, knowledge: Path) -> None:
        self._knowledge = knowledge
        self._dataset = knowledge / DATASET_NAME
        self._sums = knowledge / CHECKSUMS_NAME
        self._lock = threading.Lock()
        self._seen: dict[str, Seen] = {}

    def verify(self, dataset: lance.LanceDataset) -> None:
        """Compare the files of a version with their checksums.

        Raises:
            DataLossError: one was altered; the file is named.
        """
        with self._lock:
            for file in self._files(dataset):
                self._verify(file)

    def verify_again(self, dataset: lance.LanceDataset) -> None:
        """The same for files that were right before and have changed since: no file is hashed for the first time."""
        with self._lock:
            for file in self._files(dataset):
                if file.name in self._seen:
                    self._verify(file)

    def record(self, dataset: lance.LanceDataset) -> None:
        """Write down the checksums of the files of a version that have none. A failure is logged: the rows are safe."""
        try:
            self._sums.mkdir(exist_ok=True)
            known = {path.name for path in self._sums.iterdir()}
            for file in self._files(dataset):
                if file.name not in known:
                    self._write(file.name, sha256_of(file))
        except OSError as error:
            log.warning("checksums not written", extra=fields(path=self._sums, reason=error))

    def forget_removed(self) -> None:
        """Remove the checksums of files that are there no more."""
        with self._lock:
            for path in self._sums.iterdir() if self._sums.is_dir() else ():
                if not any((self._dataset / kind / path.name).exists() for kind in (DATA, DELETIONS)):
                    path.unlink(missing_ok=True)
                    self._seen.pop(path.name, None)

    def _verify(self, file: Path) -> None:
        try:
            there = file.stat()
            seen = (there.st_size, there.st_mtime_ns)
            if self._seen.get(file.name) == seen:
                return
            wanted = self._recorded(file)
            altered = wanted is not None and sha256_of(file) != wanted
        except FileNotFoundError:
            return  # removed meanwhile by a compaction: Lance says so
        if altered:
            raise DataLossError(
                f"{self._knowledge} is damaged, build it again or put this file back from a copy: {file} was altered "
                "since it was written (wrong checksum)",
                field=str(self._knowledge),
            )
        self._seen[file.name] = seen

    def _files(self, dataset: lance.LanceDataset) -> list[Path]:
        """The data and deletion files of a version; Lance itself tells of those that are missing."""
        files = []
        for fragment in dataset.get_fragments():
            files += [self._dataset / DATA / file.path for file in fragment.data_files()]
            deletions = fragment.deletion_file()
            files += [self._dataset / DELETIONS / Path(deletions).name] if deletions else []
        return [file for file in files if file.is_file()]

    def _recorded(self, file: Path) -> str | None:
        try:
            found = (self._sums / file.name).read_text().strip()
        except OSError:
            return None
        return found if len(found) == HEX_DIGITS else None  # shorter after a loss of power

    def _write(self, name: str, checksum: str) -> None:
        partial = self._sums / f".{name}.{os.getpid()}.{threading.get_ident()}"
        partial.write_text(f"{checksum}\n")
        partial.replace(self._sums / name)


@cache
def file_checks(knowledge: Path) -> FileChecks:
    """Those of a knowledge base, one for the whole process: what one reader has compared others need not."""
    return FileChecks(knowledge)
