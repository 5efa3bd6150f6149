"""Errors of the operating system about files, as errors of `ragserve.errors` that name path, reason and way out."""

from __future__ import annotations

import errno
import json
import os
import re
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragserve.errors import (
    FailedPreconditionError,
    InvalidInputError,
    NotFoundError,
    RagserveError,
    ResourceExhaustedError,
)
from ragserve.reasons import reason_of


def parse_json(text: str) -> Any:
    """The JSON document in a text that may come from anybody. Raises ValueError, also for one nested too deeply."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(reason_of(error)) from error


@dataclass(frozen=True)
class Reason:
    """What an error number means, and what to do about it."""

    what: str
    advice: str
    error: type[RagserveError] = FailedPreconditionError


_OTHER_DISK = "free some, or name a place on another disk"
REASONS: dict[int, Reason] = {
    errno.EACCES: Reason("permission denied", "give the user of this process (uid {uid}) the right to {verb} it"),
    errno.EPERM: Reason("permission denied", "give the user of this process (uid {uid}) the right to {verb} it"),
    errno.EROFS: Reason("the file system is read-only", "name a place that can be written to"),
    errno.ENOSPC: Reason("no space is left on the disk", _OTHER_DISK, ResourceExhaustedError),
    errno.EDQUOT: Reason("the disk quota is used up", _OTHER_DISK, ResourceExhaustedError),
    errno.EFBIG: Reason("the file is too large for the file system or the limit (ulimit -f)", _OTHER_DISK),
    errno.ENOENT: Reason("there is no such file or folder", "check the name", NotFoundError),
    errno.ENOTDIR: Reason("a part of the path is a file, not a folder", "check the name"),
    errno.EISDIR: Reason("it is a folder, not a file", "name a file"),
    errno.EEXIST: Reason("something of that name exists already", "choose another name"),
    errno.ENAMETOOLONG: Reason("the name is too long", "choose a shorter one"),
    errno.ELOOP: Reason("its symbolic links go in a circle", "repair the links"),
    errno.EMFILE: Reason("too many files are open", "raise the limit (ulimit -n)", ResourceExhaustedError),
    errno.ENFILE: Reason("too many files are open", "raise the limit of the system", ResourceExhaustedError),
    errno.ENOMEM: Reason("not enough memory", "free some, or use a larger machine", ResourceExhaustedError),
    errno.EBADF: Reason("it is closed", "leave it open, or redirect it to a file"),
    errno.EIO: Reason("input/output error", "check the disk and its connection"),
}
READING = ("read", "look at", "go on:")  # what is done to files without writing
# Python's class for a number: what libraries in Rust raise has the class, but no number.
_OF_CLASS: dict[type[OSError], int] = {
    PermissionError: errno.EACCES,
    FileNotFoundError: errno.ENOENT,
    IsADirectoryError: errno.EISDIR,
    NotADirectoryError: errno.ENOTDIR,
    FileExistsError: errno.EEXIST,
}
# As Rust (Lance, safetensors), Arrow and ONNX Runtime write the number into their texts.
_NUMBER = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]|system error number (\d+)", re.IGNORECASE)


def number_of(error: BaseException) -> int | None:
    """The operating system's error number, from the error or from its text; None where it has none."""
    number = getattr(error, "errno", None)
    if isinstance(number, int):
        return number
    if found := _NUMBER.search(str(error)):
        return int(found[1] or found[2] or found[3])
    return next((number for cls, number in _OF_CLASS.items() if isinstance(error, cls)), None)


def is_about_access(error: BaseException) -> bool:
    """Whether the error says that a file cannot be reached or written, not that its content is bad or it is missing."""
    number = number_of(error)
    return number in REASONS and number != errno.ENOENT


def file_error(error: BaseException, doing: str, path: Path | str) -> RagserveError:
    """The error for a file that the operating system refuses: "cannot `doing` `path`: why; what to do"."""
    reason = REASONS.get(number_of(error) or 0)
    if reason is None:
        text = getattr(error, "strerror", None) or reason_of(error, "the system gives no reason")
        reason = Reason(text[:1].lower() + text[1:], "")
    at_fault = getattr(error, "filename", None)
    named = f"{path}: " if at_fault in (None, "", path, str(path)) else f"{path}: {os.fsdecode(at_fault)}: "
    verb = "read" if doing.startswith(READING) else "write to"
    advice = f"; {reason.advice.format(uid=os.geteuid(), verb=verb)}" if reason.advice else ""
    return reason.error(f"cannot {doing} {named}{reason.what}{advice}", field=str(path))


@contextmanager
def file_errors(doing: str, path: Path | str) -> Iterator[None]:
    """Raises `file_error` in place of an OSError, and of another library's error that holds the number of one."""
    try:
        yield
    except RagserveError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not is_about_access(error):
            raise
        raise file_error(error, doing, path) from error


def require_file(path: Path, advice: str) -> None:
    """Checks that a file is there and can be read, before a library reads it whose errors do not say why.

    Raises:
        NotFoundError: there is no such file; the message ends with the advice.
        RagserveError: it cannot be opened, or is no file.
    """
    try:
        with path.open("rb"):
            return
    except (FileNotFoundError, ValueError) as error:  # no file's name holds a NUL or half a surrogate pair
        raise NotFoundError(f"{path} is missing: {advice}", field=str(path)) from error
    except OSError as error:
        raise file_error(error, "read", path) from error


def read_toml(path: Path) -> dict[str, Any]:
    """The configuration file that --config names. Raises InvalidInputError where it cannot be read or is not TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidInputError("--config", file_error(error, "read", path).message) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError("--config", f"{path} is not TOML: {error}") from error
    except RecursionError as error:
        raise InvalidInputError("--config", f"{path} is not TOML: it is nested too deeply") from error


def exists(path: Path, test: Callable[[Path], bool] = Path.exists) -> bool:
    """What `test` says, such as `Path.is_file`. Raises RagserveError where the path cannot be looked at."""
    with file_errors("look at", path):
        return test(path)
