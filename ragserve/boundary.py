"""The last handler of every program: any error becomes one line on stderr and an exit status, never a traceback."""

from __future__ import annotations

import errno
import io
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

from ragserve.errors import InvalidInputError, RagserveError
from ragserve.files import file_error, is_about_access
from ragserve.printable import printable

FAILED, BAD_INPUT, INTERNAL = 1, 2, 70  # exit status; 70 is EX_SOFTWARE of sysexits.h
INTERRUPTED = 128 + 2  # as shells give it for SIGINT
STDOUT = "stdout"
DEBUG_VARIABLE = "RAGSERVE_DEBUG"
REPORT = (
    f"this is a bug in ragserve. Run it again with 'ragserve --debug' or {DEBUG_VARIABLE}=1, and report the traceback "
    "with the output of 'ragserve --version' to the maintainers of ragserve"
)


@dataclass(frozen=True)
class Ending:
    """What is printed about an error, and the exit status."""

    text: str
    status: int


def ending_of(error: BaseException) -> Ending:
    """How a program ends with an error."""
    if isinstance(error, RagserveError):
        return Ending(str(error), BAD_INPUT if isinstance(error, InvalidInputError) else FAILED)
    if isinstance(error, OSError) or is_about_access(error):
        path = getattr(error, "filename", None) or ""
        return Ending(file_error(error, "go on:", os.fsdecode(path) if path else "a file").message, FAILED)
    if isinstance(error, MemoryError):
        return Ending("not enough memory: close other programs, or use smaller batches or a larger machine", FAILED)
    detail = " ".join(str(error).split())
    return Ending(f"internal error: {type(error).__name__}{f': {detail}' if detail else ''}; {REPORT}", INTERNAL)


def debugging() -> bool:
    """Whether tracebacks are wanted (`ragserve --debug`)."""
    return os.environ.get(DEBUG_VARIABLE, "") not in ("", "0")


def guarded(program: Callable[[], int], report: Callable[[str], None], known: Callable[[BaseException], Ending]) -> int:
    """Runs a program and returns its exit status. An error is reported once, as `known` says it.

    A reader that went away (`| head`) is no error: nothing is printed.
    """
    _prepare_streams()
    try:
        try:
            return program()
        finally:
            sys.stdout.flush()
    except SystemExit:
        raise
    except KeyboardInterrupt:
        return INTERRUPTED
    except BaseException as error:  # a panic of Rust code is no Exception
        ending = _ending_of_output(error) or known(error)
        _report(error, ending, report)
        return ending.status


def print_error(text: str) -> None:
    """One line on stderr."""
    print(f"error: {printable(text)}", file=sys.stderr, flush=True)


def _report(error: BaseException, ending: Ending, report: Callable[[str], None]) -> None:
    if debugging():
        traceback.print_exception(error)
    if ending.text:
        report(ending.text)


class _Output(io.FileIO):
    """A standard stream whose failed writes can be told from those of files."""

    def __init__(self, number: int, name: str, *, required: bool) -> None:
        super().__init__(number, "w", closefd=False)
        self._label, self._required = name, required

    def write(self, data: Any, /) -> int:
        """Writes; where that fails, names the stream in the error, or drops the data of one that is not required."""
        try:
            return int(super().write(data) or 0)
        except OSError as error:
            if not self._required:
                return memoryview(data).nbytes
            error.filename = self._label
            raise


def _ending_of_output(error: BaseException) -> Ending | None:
    """The ending where it is stdout that cannot be written; what waits to be written is thrown away."""
    if not isinstance(error, OSError) or (error.filename != STDOUT and error.errno != errno.EPIPE):
        return None
    _open_as(1, os.O_WRONLY)  # the interpreter flushes once more at its end
    if error.errno == errno.EPIPE:
        return Ending("", FAILED)
    return Ending(file_error(error, "write the output to", STDOUT).message, FAILED)


def _prepare_streams() -> None:
    """Makes stdout name itself in errors, and stderr never fail. Characters that cannot be encoded become escapes.

    Where one is closed, its number is taken, so that no file gets it and is written to by mistake. A closed stdin is
    an empty one.
    """
    if sys.stdin is None:
        _open_as(0, os.O_RDONLY)
        sys.stdin = io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding="utf-8")
    for name, number in ((STDOUT, 1), ("stderr", 2)):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:
            _open_as(number, os.O_RDONLY)
        elif not isinstance(stream, io.TextIOWrapper) or stream is not getattr(sys, f"__{name}__"):
            continue  # something else has taken its place, as in a test
        raw = _Output(number, name, required=name == STDOUT)
        again = io.TextIOWrapper(
            io.BufferedWriter(raw),
            encoding=stream.encoding if stream else "utf-8",
            errors="backslashreplace",
            line_buffering=stream.line_buffering if stream else False,
            write_through=stream.write_through if stream else False,
        )
        setattr(sys, name, again)


def _open_as(number: int, flags: int) -> None:
    """Opens /dev/null under a number, in place of what has that number."""
    handle = os.open(os.devnull, flags)
    if handle != number:
        os.dup2(handle, number)
        os.close(handle)
