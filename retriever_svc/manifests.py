"""The versions of a Lance dataset, by its folder: Lance itself lists them only while it can read every manifest."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import lance

FOLDER, ENDING = "_versions", ".manifest"
MOST = 2**64 - 1  # a name of 20 digits counts down from here, so that the newest one is listed first
WIDTH = 20
REMOVAL_SECONDS = 1.0
UNREADABLE = (OSError, RuntimeError, ValueError)  # what Lance raises over damaged files


@dataclass(frozen=True)
class Readable:
    """A version that can be opened."""

    version: int
    created: datetime
    passages: int


def committed(directory: Path) -> list[int]:
    """The numbers of all versions of a dataset, damaged ones too, oldest first."""
    names = (file.name.removesuffix(ENDING) for file in (directory / FOLDER).glob(f"*{ENDING}"))
    return sorted(MOST - int(name) if len(name) == WIDTH else int(name) for name in names if name.isdecimal())


def file_of(directory: Path, version: int) -> Path:
    """The manifest of a version."""
    counting_down = directory / FOLDER / f"{MOST - version:0{WIDTH}}{ENDING}"
    return counting_down if counting_down.exists() else directory / FOLDER / f"{version}{ENDING}"


def removed(directory: Path, version: int) -> bool:
    """Whether a version is gone, or goes within a second: a compaction removes its files first, then its manifest."""
    deadline = time.monotonic() + REMOVAL_SECONDS
    while version in (known := committed(directory)):
        if version == known[-1] or time.monotonic() > deadline:  # the newest one stays
            return False
        time.sleep(REMOVAL_SECONDS / 50)
    return True


def is_missing(error: BaseException) -> bool:
    """Whether a file is not there."""
    return isinstance(error, FileNotFoundError) or "Not found" in str(error)


def is_panic(error: BaseException) -> bool:
    """Whether Lance's Rust code gave up, as it may over damaged files: that is no Exception, and of a hidden class."""
    return type(error).__name__ == "PanicException"


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Raises OSError where Lance's Rust code gives up."""
    try:
        yield
    except BaseException as error:
        if not is_panic(error):
            raise
        raise OSError(str(error)) from error


def opened(directory: Path, version: int | None = None) -> lance.LanceDataset:
    """A version of a dataset; None: the newest. Raises OSError, RuntimeError or ValueError, as Lance does."""
    with panics_as_errors():
        return lance.dataset(str(directory), version=version)


def readable(dataset: lance.LanceDataset, directory: Path) -> list[Readable]:
    """The versions that can be opened, oldest first: where one cannot, each of the others is opened by itself."""
    try:
        with panics_as_errors():
            entries: Any = dataset.versions()
    except UNREADABLE:
        return list(_one_by_one(directory))
    return [
        Readable(int(entry["version"]), entry["timestamp"], int(entry["metadata"]["total_rows"])) for entry in entries
    ]


def _one_by_one(directory: Path) -> Iterator[Readable]:
    """The versions that can be opened; each was made when its file was written, as far as can be known."""
    for version in committed(directory):
        try:
            with panics_as_errors():
                passages = int(opened(directory, version).count_rows())
            written = datetime.fromtimestamp(file_of(directory, version).stat().st_mtime)
        except UNREADABLE:
            continue
        yield Readable(version, written, passages)
