"""Commits what an older version holds as the next version, unless somebody else has committed that one.

Lance's own restore goes on top of whatever is newest when it commits, and would silently undo a write that nobody had
seen. So it is made beside the dataset, from the two manifests that it reads, and its manifest is then linked into the
dataset: a link fails where the name is taken. That is how Lance commits on a file system, too.
"""

from __future__ import annotations

import shutil
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import lance

from retriever_svc.manifests import FOLDER, file_of

TRANSACTIONS = "_transactions"
SCRATCH = "_rollback_"
LEFT_SECONDS = (
    3600.0  # after which a scratch folder is that of a process that was killed: a rollback takes milliseconds
)


def restore_as_next(directory: Path, version: int, newest: int) -> int:
    """Commit the content of a version after the newest one known; the new version's number.

    Raises:
        FileExistsError: there is a newer version than `newest`; nothing was committed.
        OSError, RuntimeError, ValueError: as Lance does, when a manifest cannot be read or files not be written.
    """
    with TemporaryDirectory(prefix=SCRATCH, dir=directory) as name:
        scratch = Path(name)
        (scratch / FOLDER).mkdir()
        for known in {version, newest}:
            manifest = file_of(directory, known)
            (scratch / FOLDER / manifest.name).hardlink_to(manifest)
        lance.dataset(str(scratch), version=version).restore()  # type: ignore[no-untyped-call]
        made = file_of(scratch, newest + 1)
        _commit(directory, made, list((scratch / TRANSACTIONS).iterdir()))
    return newest + 1


def remove_left(directory: Path) -> None:
    """Remove what rollbacks that were killed have left; nothing ever reads it."""
    for scratch in directory.glob(f"{SCRATCH}*"):
        with suppress(OSError):  # somebody else removes it, too
            if time.time() - scratch.stat().st_mtime > LEFT_SECONDS:
                shutil.rmtree(scratch)


def _commit(directory: Path, manifest: Path, transactions: list[Path]) -> None:
    """Link the files into the dataset, the manifest last."""
    linked = [directory / TRANSACTIONS / file.name for file in transactions]
    for place, file in zip(linked, transactions, strict=True):
        place.hardlink_to(file)
    try:
        (directory / FOLDER / manifest.name).hardlink_to(manifest)
    except OSError:
        for place in linked:
            place.unlink()
        raise
