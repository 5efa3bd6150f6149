"""The directory that a knowledge base is built to: what may be there before, and how the knowledge base gets there."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from ragserve.errors import FailedPreconditionError
from ragserve.files import exists
from retriever_svc.build.files import sync
from retriever_svc.build.journal import Journal
from retriever_svc.build.sources import is_lance
from retriever_svc.checksums import CHECKSUMS_NAME
from retriever_svc.knowledge import DATASET_NAME

INSIDE = ".building"  # the building directory in an empty directory, which may be a volume of its own
NOT_CONTENT = frozenset(("lost+found", INSIDE))


@dataclass(frozen=True)
class Target:
    """Where a knowledge base is built to.

    is_replaced: a knowledge base is there, which gets a new version.
    is_empty: an empty directory is there.
    """

    path: Path
    is_replaced: bool = False
    is_empty: bool = False

    @property
    def building(self) -> Path:
        """Where unfinished work is kept, on the same file system as the knowledge base."""
        return self.path / INSIDE if self.is_empty else self.path.parent / f".{self.path.name}.building"

    def take(self, journal: Journal) -> None:
        """Move a finished new knowledge base to its place. A reader sees all of it or nothing.

        Raises:
            FailedPreconditionError: something else was put there meanwhile.
        """
        if not self.is_empty:
            try:
                journal.knowledge.rename(self.path)
            except OSError as error:  # a directory that is not empty, or a file
                if not exists(self.path):
                    raise
                raise _taken(self.path) from error
            sync(self.path.parent)
            return
        if (self.path / DATASET_NAME).exists():
            raise _taken(self.path)
        # The dataset comes last: it is what makes the directory a knowledge base.
        for path in sorted(journal.knowledge.iterdir(), key=lambda path: path.name == DATASET_NAME):
            place = self.path / path.name
            shutil.rmtree(place, ignore_errors=True)  # what a build that was killed here had moved
            path.rename(place)
        sync(self.path)


def _taken(out: Path) -> FailedPreconditionError:
    return FailedPreconditionError(f"{out} was made by someone else meanwhile", field="out")


def is_free(out: Path) -> bool:
    """Whether a new knowledge base may be made there: nothing is there, or an empty directory."""
    return not exists(out) or _is_empty(out)


def check_target(out: Path, source: Path, replace: bool) -> Target:
    """What is at `out`, where a knowledge base may be made or replaced.

    Raises:
        FailedPreconditionError: something is there that is not to be replaced, or `out` is in the dataset that is read.
    """
    if exists(source, Path.is_dir) and is_lance(source) and source.resolve() in out.resolve().parents:
        raise FailedPreconditionError(f"{out} is in the source, {source}: choose another place", field="out")
    if not exists(out):
        return Target(out)
    if not out.is_dir():
        raise FailedPreconditionError(f"{out} is a file, and must be a directory: choose another name", field="out")
    if _is_empty(out):
        return Target(out, is_empty=True)
    if not (out / DATASET_NAME).is_dir():
        raise FailedPreconditionError(
            f"{out} is not empty and is not a knowledge base: choose another name", field="out"
        )
    if not replace:
        raise FailedPreconditionError(
            f"{out} exists: choose another name, or ask to replace it (--replace)", field="out"
        )
    return Target(out, is_replaced=True)


def _is_empty(out: Path) -> bool:
    """Whether a directory holds nothing but what an unfinished build put there."""
    if not out.is_dir():
        return False
    names = {path.name for path in out.iterdir()}
    return not names - NOT_CONTENT - ({CHECKSUMS_NAME} if INSIDE in names else set())
