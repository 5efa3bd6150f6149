"""Copies sources that can be read only once, such as standard input, to a file: a build reads its source twice."""

from __future__ import annotations

import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ragserve.checkpoint import sha256_of
from ragserve.errors import InvalidInputError
from ragserve.files import file_errors
from ragserve.unfinished import unfinished
from retriever_svc.build.folders import format_of
from retriever_svc.build.reading import Notify

STANDARD_INPUT = "-"
STREAM_PATHS = ("/dev/stdin", "/dev/fd/", "/proc/self/fd/")
DIGEST_CHARACTERS = 12


@dataclass(frozen=True)
class Readable:
    """A path that can be read from its beginning, as often as is needed.

    pipe: what the user calls the pipe that the path is a copy of; empty: the path is the source itself.
    """

    path: Path
    pipe: str = ""

    @property
    def shown(self) -> Path:
        """What errors name."""
        return Path(self.pipe) if self.pipe else self.path


@contextmanager
def readable(source: Path, source_format: str | None, notify: Notify) -> Iterator[Readable]:
    """The source itself, or a temporary copy of it.

    Copied are standard input (`-`), named pipes and what a shell's `<(command)` makes. Different pipes have the same
    name, so the copy is named after a digest of its content: ids that are made of it do not repeat.

    Raises:
        InvalidInputError: the format of such a source is not given.
    """
    if not _is_stream(source):
        yield Readable(source)
        return
    if source_format is None and format_of(source.name) is None:
        raise InvalidInputError("source_format", f"{source} is a pipe: say the format of what comes (--format)")
    with tempfile.TemporaryDirectory(prefix="ragserve-") as directory, unfinished(Path(directory)):
        notify(f"{source} is read once and kept in {directory} until this ends")
        copy = Path(directory) / "copy"
        with file_errors("read", source), copy.open("wb") as file:
            if str(source) == STANDARD_INPUT:
                shutil.copyfileobj(sys.stdin.buffer, file)
            else:
                with source.open("rb") as pipe:
                    shutil.copyfileobj(pipe, file)
        ending = "" if source_format else "".join(source.suffixes)
        named = copy.rename(copy.with_name(f"pipe-{sha256_of(copy)[:DIGEST_CHARACTERS]}{ending}"))
        yield Readable(named, "stdin" if str(source) == STANDARD_INPUT else str(source))


def _is_stream(source: Path) -> bool:
    if str(source) == STANDARD_INPUT:
        return True
    try:
        mode = os.stat(source).st_mode
    except OSError:  # said by what reads the source
        return False
    is_pipe = stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) or stat.S_ISSOCK(mode)
    return is_pipe or (stat.S_ISREG(mode) and str(source).startswith(STREAM_PATHS))
