"""Whether a folder still holds the history that a replica follows, or another one was put in its place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ragserve.errors import FailedPreconditionError
from retriever_svc.knowledge import DATASET_NAME
from retriever_svc.manifests import UNREADABLE, file_of, opened, panics_as_errors

Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Lineage:
    """A version that was loaded: which commit made it, and how its manifest looked then."""

    path: Path  # of the knowledge base
    version: int
    commit: str | None  # Lance's id of the transaction; None: not known
    stamp: Stamp | None

    @classmethod
    def of(cls, path: Path, version: int) -> Lineage:
        """What the folder holds now."""
        directory = path / DATASET_NAME
        stamp = _stamp(directory, version)
        return cls(path, version, _commit(directory, version), stamp)

    def check(self, newest: int) -> None:
        """Check that `newest`, the newest version in the folder, follows from this one.

        Raises:
            FailedPreconditionError: the folder has an older history, or another one.
        """
        if newest < self.version:
            self._refuse(f"ends at version {newest}")
        directory = self.path / DATASET_NAME
        stamp = _stamp(directory, self.version)
        if stamp in (None, self.stamp):  # removed by a compaction, or as it was
            return
        commit = _commit(directory, self.version)
        if commit is not None and self.commit is not None and commit != self.commit:
            self._refuse("has another one of that number")

    def _refuse(self, what: str) -> None:
        raise FailedPreconditionError(
            f"{self.path} was replaced by other files: version {self.version} is loaded, and the folder {what}; "
            "restart this replica to serve what is there now",
            field=str(self.path),
        )


def _stamp(directory: Path, version: int) -> Stamp | None:
    """What changes when a manifest is replaced; None where there is none, or it cannot be reached."""
    try:
        found = file_of(directory, version).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _commit(directory: Path, version: int) -> str | None:
    """The id of the commit that made a version; None where it cannot be read."""
    try:
        with panics_as_errors():
            transaction = opened(directory, version).read_transaction(version)
    except UNREADABLE:
        return None
    return None if transaction is None else str(transaction.uuid)
