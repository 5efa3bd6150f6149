"""Built indexes on disk, each next to the SHA-256 of its bytes. A file with another checksum is never deserialized."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import faiss

from ragserve.checkpoint import sha256_of
from ragserve.serving.logs import fields
from retriever_svc.index.faiss_index import FaissIndex
from retriever_svc.index.spec import IndexSpec

log = logging.getLogger(__name__)


class IndexCache:
    """A directory of index files, keyed by what is indexed and how."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path_of(self, content: str, spec: IndexSpec) -> Path:
        """The file for one content (knowledge-base version and encoder) and factory string."""
        key = "\n".join([content, spec.full_factory, str(spec.training_vectors), faiss.__version__])
        return self._directory / f"{hashlib.sha256(key.encode()).hexdigest()}.faiss"

    def load_or_build(self, content: str, spec: IndexSpec, build: Callable[[], FaissIndex]) -> FaissIndex:
        """The cached index when its checksum is right; otherwise a new one, written for the next start."""
        path = self.path_of(content, spec)
        if self._is_sound(path):
            log.info("index loaded from cache", extra=fields(path=path))
            return FaissIndex.read(path, spec)
        index = build()
        try:
            self._store(path, index)
        except OSError as error:
            log.warning("index not cached", extra=fields(path=path, reason=error))
        return index

    def _is_sound(self, path: Path) -> bool:
        """Whether the file is there, complete and unaltered."""
        try:
            expected = _checksum_path(path).read_text(encoding="ascii").strip()
            sound = sha256_of(path) == expected
        except (OSError, UnicodeDecodeError):
            return False
        if not sound:
            log.warning("cached index refused, wrong checksum: building it again", extra=fields(path=path))
        return sound

    def _store(self, path: Path, index: FaissIndex) -> None:
        """Write file and checksum, each atomically; a crash in between leaves a file that is refused."""
        self._directory.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=self._directory, suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        try:
            index.write(temporary)
            checksum = sha256_of(temporary)
            temporary.replace(path)
            temporary.write_text(checksum + "\n", encoding="ascii")
            temporary.replace(_checksum_path(path))
        except RuntimeError as error:  # FAISS reports a full disk this way
            raise OSError(str(error)) from error
        finally:
            temporary.unlink(missing_ok=True)


def _checksum_path(path: Path) -> Path:
    return path.with_suffix(".faiss.sha256")
