"""The last handler of every program: any error becomes one line on stderr and an exit status, never a traceback."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass

from ragserve.errors import InvalidInputError, RagserveError
from ragserve.files import file_error
from ragserve.printable import printable

FAILED, BAD_INPUT, INTERNAL = 1, 2, 70  # exit status; 70 is EX_SOFTWARE of sysexits.h
INTERRUPTED, BROKEN_PIPE = 128 + 2, 128 + 13  # as shells give it for SIGINT and SIGPIPE
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
        named = error.field and error.field not in error.message
        text = f"{error.field}: {error.message}" if named else error.message
        return Ending(text, BAD_INPUT if isinstance(error, InvalidInputError) else FAILED)
    if isinstance(error, OSError):
        path = error.filename if error.filename is not None else ""
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
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as error:
        ending = _ending_of_output(error) or known(error)
        _report(error, ending, report)
        return ending.status


def print_error(text: str) -> None:
    """One line on stderr."""
    print(f"error: {printable(text)}", file=sys.stderr, flush=True)


def _report(error: BaseException, ending: Ending, report: Callable[[str], None]) -> None:
    try:
        if debugging():
            traceback.print_exception(error)
        if ending.text:
            report(ending.text)
    except OSError:  # stderr is closed or full: the exit status says it
        _discard(2)


def _ending_of_output(error: BaseException) -> Ending | None:
    """The ending where it is stdout that cannot be written; what waits to be written is thrown away."""
    if not isinstance(error, OSError) or error.filename is not None:
        return None
    try:
        sys.stdout.flush()
    except OSError as failed:
        _discard(1)
        if failed.errno == errno.EPIPE:
            return Ending("", BROKEN_PIPE)
        return Ending(file_error(failed, "write", "the output (stdout)").message, FAILED)
    return Ending("", BROKEN_PIPE) if error.errno == errno.EPIPE else None


def _prepare_streams() -> None:
    """Gives a closed stdout or stderr a place that fails on writing, and unknown characters a way to be written."""
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:  # closed: opened for reading only, so that a write fails, and no file gets this number
            _open_as(number, os.O_RDONLY)
            setattr(sys, name, open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _discard(number: int) -> None:
    """Sends what is still written to a file descriptor nowhere, so that the interpreter's own last flush succeeds."""
    _open_as(number, os.O_WRONLY)


def _open_as(number: int, flags: int) -> None:
    handle = os.open(os.devnull, flags)
    if handle != number:
        os.dup2(handle, number)
        os.close(handle)
