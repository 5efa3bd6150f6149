"""Copies sources that can be read only once, such as standard input, to a file: a build reads its source twice."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ragserve.errors import InvalidInputError
from ragserve.files import file_errors
from ragserve.unfinished import unfinished
from retriever_svc.build.folders import format_of
from retriever_svc.build.reading import Notify

STANDARD_INPUT = "-"
SPOOLED_NAME = "stdin"


@contextmanager
def readable(source: Path, source_format: str | None, notify: Notify) -> Iterator[Path]:
    """A path that can be read from its beginning, as often as is needed: the source itself, or a temporary copy.

    Copied are standard input (`-`), named pipes and what a shell's `<(command)` makes.

    Raises:
        InvalidInputError: the format of such a source is not given.
    """
    if not _is_stream(source):
        yield source
        return
    if source_format is None and format_of(source.name) is None:
        raise InvalidInputError("source_format", f"{source} is a pipe: say the format of what comes (--format)")
    with tempfile.TemporaryDirectory(prefix="ragserve-") as directory, unfinished(Path(directory)):
        name = SPOOLED_NAME if source_format else source.name
        copy = Path(directory) / name
        notify(f"{source} is read once and kept in {copy} until this ends")
        with file_errors("read", source), copy.open("wb") as file:
            if str(source) == STANDARD_INPUT:
                shutil.copyfileobj(sys.stdin.buffer, file)
            else:
                with source.open("rb") as pipe:
                    shutil.copyfileobj(pipe, file)
        yield copy


def _is_stream(source: Path) -> bool:
    if str(source) == STANDARD_INPUT:
        return True
    try:
        mode = os.stat(source).st_mode
    except OSError:  # said by what reads the source
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)
