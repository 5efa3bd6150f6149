"""Built indexes on disk, each next to the SHA-256 of its bytes. A file with another checksum is never deserialized."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import faiss

from ragserve.checkpoint import sha256_of
from ragserve.serving.logs import fields
from retriever_svc.index.faiss_index import FaissIndex
from retriever_svc.index.spec import IndexSpec

log = logging.getLogger(__name__)

MAX_INDEXES = 4
PER_SEARCH = ("nprobe", "efSearch")  # parameters that leave the file as it is


class IndexCache:
    """A directory of index files, keyed by what is indexed and how. Several processes may share it.

    It holds the `max_indexes` used last. What an interrupted build left is removed, and never trusted: a file counts
    only with its checksum, which is written after it.
    """

    def __init__(self, directory: Path, max_indexes: int = MAX_INDEXES) -> None:
        self._directory = directory
        self._max_indexes = max_indexes

    def path_of(self, content: str, spec: IndexSpec) -> Path:
        """The file for one content (knowledge-base version and encoder) and factory string."""
        pairs = [pair for pair in spec.search_parameters.split(",") if pair.partition("=")[0] not in PER_SEARCH]
        key = "\n".join([content, spec.full_factory, str(spec.training_vectors), ",".join(pairs), faiss.__version__])
        return self._directory / f"{hashlib.sha256(key.encode()).hexdigest()}.faiss"

    def load_or_build(self, content: str, spec: IndexSpec, build: Callable[[], FaissIndex]) -> FaissIndex:
        """The cached index when its checksum is right; otherwise a new one, written for the next start."""
        path = self.path_of(content, spec)
        index = self._load(path, spec)
        if index is not None:
            return index
        index = build()
        try:
            self._store(path, index)
        except OSError as error:
            log.warning("index not cached", extra=fields(path=path, reason=error))
        with suppress(OSError):  # another process tidies too
            self._tidy(path)
        return index

    def _load(self, path: Path, spec: IndexSpec) -> FaissIndex | None:
        if not _is_sound(path):
            return None
        try:
            index = FaissIndex.read(path, spec)
        except RuntimeError as error:
            log.warning("cached index cannot be read: building it again", extra=fields(path=path, reason=error))
            return None
        with suppress(OSError):  # a read-only directory
            os.utime(path)
        log.info("index loaded from cache", extra=fields(path=path))
        return index

    def _store(self, path: Path, index: FaissIndex) -> None:
        """Write file and checksum, each atomically; a crash in between leaves a file that is refused."""
        self._directory.mkdir(parents=True, exist_ok=True)
        with _temporary_file(self._directory) as temporary:
            try:
                index.write(temporary)
            except RuntimeError as error:  # FAISS reports a full disk this way
                raise OSError(str(error)) from error
            checksum = sha256_of(temporary)
            _sync(temporary)
            temporary.replace(path)
        with _temporary_file(self._directory) as temporary:
            temporary.write_text(checksum + "\n", encoding="ascii")
            _sync(temporary)
            temporary.replace(_checksum_path(path))

    def _tidy(self, newest: Path) -> None:
        """Remove what interrupted builds left, and the indexes unused for longest beyond the limit."""
        for temporary in self._directory.glob("*.tmp"):
            if _is_abandoned(temporary):
                temporary.unlink(missing_ok=True)
        others = [path for path in self._directory.glob("*.faiss") if path != newest]
        others.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for path in others[self._max_indexes - 1 :]:
            log.info("cached index unused for longest, removed", extra=fields(path=path))
            _checksum_path(path).unlink(missing_ok=True)
            path.unlink(missing_ok=True)


def _is_sound(path: Path) -> bool:
    """Whether the file is there, complete and unaltered."""
    try:
        expected = _checksum_path(path).read_text(encoding="ascii").strip()
        sound = sha256_of(path) == expected
    except (OSError, UnicodeDecodeError):
        return False
    if not sound:
        log.warning("DATA_LOSS: cached index has a wrong checksum, building it again", extra=fields(path=path))
    return sound


@contextmanager
def _temporary_file(directory: Path) -> Iterator[Path]:
    """A file that is locked while it is written, so that others can tell it from one left by a dead process."""
    handle, name = tempfile.mkstemp(dir=directory, suffix=".tmp")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
        os.close(handle)


def _is_abandoned(temporary: Path) -> bool:
    """Whether nobody holds the lock of a temporary file: the process that wrote it is gone."""
    try:
        with temporary.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sync(path: Path) -> None:
    """Bring a file to the disk before it gets its name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _checksum_path(path: Path) -> Path:
    return path.with_suffix(".faiss.sha256")
