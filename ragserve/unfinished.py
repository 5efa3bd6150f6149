"""Files and folders that hold unfinished work, which a process removes when Ctrl-C ends it at once."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_paths: list[Path] = []


@contextmanager
def unfinished(path: Path) -> Iterator[Path]:
    """Marks a path as unfinished during the block. The block removes the path itself where it ends by an error."""
    _paths.append(path)
    try:
        yield path
    finally:
        _paths.remove(path)


def remove_unfinished() -> None:
    """Removes what is unfinished, as far as that is possible."""
    for path in _paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            try:
                path.unlink(missing_ok=True)
            except OSError:
                continue
