"""Checksums of the files that hold the versions and rows of a knowledge base.

Lance notices a file that is cut short or gone, but a flipped bit in the middle only where it makes the file unreadable:
most of them change a text or a vector, or in a manifest which rows there are, and nobody is told. So each writer leaves
the SHA-256 of its files beside them, and who reads a version compares. A file without a checksum (of an older ragserve,
or of a writer that was killed between its commit and this) is taken as it is; one with rows until the next commit.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

import lance

from ragserve.checkpoint import sha256_of
from ragserve.errors import DataLossError
from ragserve.files import exists, file_error
from ragserve.serving.logs import fields
from retriever_svc.knowledge import DATASET_NAME, no_version
from retriever_svc.manifests import FOLDER, file_of, removed

CHECKSUMS_NAME = "checksums"
DATA, DELETIONS, MANIFESTS = "data", "_deletions", FOLDER
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
            for name, kind in self._files(dataset):
                self._verify(name, kind)

    def require_whole(self, dataset: lance.LanceDataset) -> None:
        """As `verify`, and every file must be there: a cleanup that was cut off leaves versions without some of theirs.

        Raises:
            DataLossError: one is gone or was altered; the file is named.
            NotFoundError: the version is gone altogether.
        """
        for name, kind in self._files(dataset):
            file = self._dataset / kind / name
            if not exists(file, Path.is_file):
                if removed(self._dataset, int(dataset.version)):
                    raise no_version(self._knowledge, int(dataset.version))
                raise DataLossError(
                    f"{self._knowledge}: version {dataset.version} cannot be read any more, {file} is gone",
                    field=str(self._knowledge),
                )
        self.verify(dataset)

    def verify_manifest(self, version: int) -> None:
        """As `verify`, the manifest of a version only."""
        with self._lock:
            self._verify(file_of(self._dataset, version).name, MANIFESTS)

    def verify_again(self, dataset: lance.LanceDataset) -> None:
        """As `verify`, for files that were right before and have changed since: none is hashed for the first time."""
        with self._lock:
            for name, kind in self._files(dataset):
                if name in self._seen:
                    self._verify(name, kind)

    def record(self, dataset: lance.LanceDataset) -> None:
        """Write down the checksums of a version that was just committed: of its manifest, and of files that have none.

        A failure is logged: the rows are safe.
        """

        def write(known: set[str]) -> None:
            for name, kind in self._files(dataset):
                if name not in known or kind == MANIFESTS:
                    with suppress(FileNotFoundError):  # a compaction has removed it
                        self._write(name, sha256_of(self._dataset / kind / name))

        self._logging_failures(write)

    def record_manifest(self, version: int) -> None:
        """As `record`, the manifest only: of a rollback, which makes no other files."""
        manifest = file_of(self._dataset, version)
        self._logging_failures(lambda _known: self._write(manifest.name, sha256_of(manifest)))

    def _logging_failures(self, write: Callable[[set[str]], None]) -> None:
        """`write` is told the names of the checksums that are there."""
        try:
            self._sums.mkdir(exist_ok=True)
            write(set(os.listdir(self._sums)))
        except OSError as error:
            log.warning("checksums not written", extra=fields(path=self._sums, reason=error))

    def forget_removed(self) -> None:
        """Remove the checksums of files that are there no more."""
        with self._lock:
            for path in self._sums.iterdir() if self._sums.is_dir() else ():
                if not any((self._dataset / kind / path.name).exists() for kind in (DATA, DELETIONS, MANIFESTS)):
                    path.unlink(missing_ok=True)
                    self._seen.pop(path.name, None)

    def _files(self, dataset: lance.LanceDataset) -> list[tuple[str, str]]:
        """The manifest, the data and the deletion files of a version: name and folder."""
        files = [(file_of(self._dataset, int(dataset.version)).name, MANIFESTS)]
        for fragment in dataset.get_fragments():
            files += [(file._path, DATA) for file in fragment.data_files()]  # `path` makes a class when it is asked
            if deletions := fragment.deletion_file():
                files.append((deletions.rpartition("/")[2], DELETIONS))
        return files

    def _verify(self, name: str, kind: str) -> None:
        file = f"{self._dataset}/{kind}/{name}"
        try:
            there = os.stat(file)  # not of a Path: hundreds of files at every commit
            seen = (there.st_size, there.st_mtime_ns)
            if self._seen.get(name) == seen:
                return
            wanted = self._recorded(name)
            altered = wanted is not None and sha256_of(Path(file)) != wanted
        except FileNotFoundError:
            return  # Lance says so
        except OSError as error:
            raise file_error(error, "read", self._knowledge) from error
        if altered:
            raise DataLossError(
                f"{self._knowledge} is damaged, build it again or put this file back from a copy: {file} was altered "
                "since it was written (wrong checksum)",
                field=str(self._knowledge),
            )
        self._seen[name] = seen

    def _recorded(self, name: str) -> str | None:
        try:
            found = (self._sums / name).read_text(errors="replace").strip()
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
