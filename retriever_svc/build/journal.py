"""The building directory of a knowledge base (`retriever_svc.build.target`): what is finished there survives a kill.

fingerprint.json   what is being built, and how; with another one everything is thrown away
staged/            the source (`retriever_svc.build.staged`)
kb/                the knowledge base, data files of finished shards only; it becomes NAME when it is committed
shards/N.json      a finished shard: its Lance fragment, and size and SHA-256 of its data files
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lance.fragment import FragmentMetadata

from ragserve.checkpoint import sha256_of
from ragserve.errors import FailedPreconditionError
from ragserve.files import file_errors
from retriever_svc.build.files import sync, unfinished_work, write_atomically
from retriever_svc.knowledge import DATASET_NAME
from retriever_svc.types import Truncated

FINGERPRINT = "fingerprint.json"


@dataclass(frozen=True)
class Journal:
    """The building directory of one knowledge base."""

    directory: Path

    @property
    def staged(self) -> Path:
        """Where the source is stored."""
        return self.directory / "staged"

    @property
    def knowledge(self) -> Path:
        """What becomes the knowledge base."""
        return self.directory / "kb"

    @property
    def dataset(self) -> Path:
        """The Lance dataset in it."""
        return self.knowledge / DATASET_NAME

    def finish(self, shard: int, passages: int, fragment: FragmentMetadata | None, truncated: Truncated) -> None:
        """Record a shard whose data file is written."""
        files = {}
        for file in fragment.files if fragment else ():
            path = self.dataset / "data" / file.path
            sync(path)
            files[file.path] = [path.stat().st_size, sha256_of(path)]
        body = {
            "passages": passages,
            "fragment": fragment and fragment.to_json(),
            "files": files,
            "truncated": [truncated.count, truncated.names],
        }
        write_atomically(self._entry(shard), json.dumps(body))

    def passages(self, shard: int) -> int | None:
        """How many passages a finished shard has; None for one that is not finished, or whose files were damaged."""
        if not self._entry(shard).is_file():
            return None
        body = self._read(shard)
        for name, (size, checksum) in body["files"].items():
            path = self.dataset / "data" / name
            if not path.is_file() or path.stat().st_size != size or sha256_of(path) != checksum:
                return None
        return int(body["passages"])

    def fragments(self, shards: int) -> list[FragmentMetadata]:
        """The fragments of the shards, all finished, in order."""
        found = (self._read(shard)["fragment"] for shard in range(shards))
        return [FragmentMetadata.from_json(json.dumps(fragment)) for fragment in found if fragment]

    def truncated(self, shards: int) -> Truncated:
        """The passages of the shards, all finished, that the encoder does not read to their end."""
        found = [self._read(shard)["truncated"] for shard in range(shards)]
        return Truncated(sum(count for count, _ in found), [name for _, names in found for name in names])

    def remove_unfinished(self, shards: Iterable[int] = ()) -> None:
        """Remove these shards, and everything that killed builds left in the dataset beside finished data files."""
        for shard in shards:
            self._entry(shard).unlink(missing_ok=True)
        known = {name for path in (self.directory / "shards").glob("[0-9]*.json") for name in _load(path)["files"]}
        left = [path for path in self.dataset.glob("*") if path.name != "data"]
        for path in [*left, *(path for path in self.dataset.glob("data/*") if path.name not in known)]:
            _remove(path)

    def _entry(self, shard: int) -> Path:
        return self.directory / "shards" / f"{shard:08}.json"

    def _read(self, shard: int) -> dict[str, Any]:
        return _load(self._entry(shard))


def _load(path: Path) -> dict[str, Any]:
    with unfinished_work(path.parent.parent):
        return dict(json.loads(path.read_text(encoding="utf-8")))


@contextmanager
def open_journal(out: Path, directory: Path, fingerprint: Mapping[str, Any]) -> Iterator[Journal]:
    """The building directory for `out`, locked: with the finished work of an earlier build of the same fingerprint.

    It is removed when the block ends well, and when it fails before anything was finished.

    Raises:
        FailedPreconditionError: another process is building there.
        RagserveError: a file there cannot be written, also within the block.
    """
    with file_errors("write", out), _locked(directory, out):
        journal = Journal(directory)
        written = json.dumps(fingerprint, sort_keys=True, indent=1)
        if not _is_written(directory / FINGERPRINT, written):
            _clear(directory)
            (directory / "shards").mkdir()
            write_atomically(directory / FINGERPRINT, written)
        try:
            yield journal
        except BaseException:
            if not any((directory / "shards").iterdir()):
                shutil.rmtree(directory)
            raise
        shutil.rmtree(directory)


def _is_written(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def _clear(directory: Path) -> None:
    """Remove what is in a directory, the fingerprint first: a kill on the way leaves nothing to go on with."""
    (directory / FINGERPRINT).unlink(missing_ok=True)
    for path in directory.iterdir():
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def _locked(directory: Path, out: Path) -> Iterator[None]:
    """Make the directory and hold its lock, which ends with the process."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    while True:
        directory.mkdir(exist_ok=True)
        handle = os.open(directory, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                message = f"{out} is being built by another process (it holds {directory})"
                message += ": wait until it has ended, or choose another name"
                raise FailedPreconditionError(message, field="out") from None
            if _is_still_there(directory, handle):
                yield
                return
        finally:
            os.close(handle)


def _is_still_there(directory: Path, handle: int) -> bool:
    """Whether the directory was not removed by the build that had the lock before."""
    try:
        return os.path.samestat(os.stat(directory), os.fstat(handle))
    except FileNotFoundError:
        return False
