"""Lines of text files, with the place of what is wrong, in bounded memory."""

from __future__ import annotations

import codecs
import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, TypeAlias

from ragserve.errors import InvalidInputError
from ragserve.printable import counted
from ragserve.reasons import reason_of

# A line or record holds a text, which JSON may write with six characters a byte, and 1 MiB of other columns.
ESCAPED_BYTES, OTHER_BYTES = 6, 2**20
EXPLAINED_BYTES = 2**25  # the longest line that is read to say why it is too long

UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
UTF16 = "the file is UTF-16: convert it to UTF-8 (iconv -f UTF-16 -t UTF-8)"
TO_UTF8 = "convert the file to UTF-8 (such as with iconv -f WINDOWS-1252 -t UTF-8)"

Line: TypeAlias = tuple[int, str | InvalidInputError]


def shown_path(path: Path) -> str:
    """The path as UTF-8 text: bytes of a name that are none become escapes."""
    return str(path).encode("utf-8", "backslashreplace").decode()


class NoColumnError(InvalidInputError):
    """A column that an option names is in no row so far: the option is wrong, and not the row."""


class UnreadFileError(InvalidInputError):
    """A document, or a file or folder within a folder, that cannot be read: it is left out as a bad row is."""


def skipped_note(rows: str, files: int, count: int, reasons: Sequence[str]) -> str:
    """What was left out, and a line for each reason; `rows` names the rows, if any, of all `count` rows and files."""
    what = " and ".join(part for part in (rows, counted(files, "file") if files else "") if part)
    begin = ", beginning with:" if count > len(reasons) else ":"
    return "\n  ".join((f"skipped {what}{begin}", *reasons))


def bad_row(
    source: Path,
    line: int,
    message: str,
    kind: type[InvalidInputError] = InvalidInputError,
    column: int | None = None,
) -> InvalidInputError:
    """The error for a bad row, with file and line in front; `column`: the character of the line, from 1."""
    place = f"{shown_path(source)}:{line}" + ("" if column is None else f", column {column}")
    return kind(place, f"{place}: {message}")


def skippable(error: InvalidInputError) -> InvalidInputError:
    """The same error about one row or file, with the option that leaves such rows out, where that helps."""
    if isinstance(error, NoColumnError):
        return error
    return InvalidInputError(error.field, f"{error.message} (skip_bad_rows leaves such rows out)")


def most_bytes(max_text_bytes: int) -> int:
    """The longest line, object, record or file of text that is read."""
    return ESCAPED_BYTES * max_text_bytes + OTHER_BYTES


def too_large(source: Path, line: int, what: str, max_text_bytes: int, largest: str = "") -> InvalidInputError:
    """The error for a row that is longer than `most_bytes`; `largest` says which column is large, where that is known.

    A row is read whole, so that a column counts that is left out.
    """
    limit = f"{most_bytes(max_text_bytes)} bytes ({ESCAPED_BYTES} times max_text_bytes and 1 MiB)"
    advice = f". {largest}: shorten it, remove it from the file" if largest else ": shorten it"
    columns = "columns that are left out included"
    return bad_row(source, line, f"{what} is longer than {limit}, {columns}{advice}, or raise max_text_bytes")


def read_lines(source: Path, max_text_bytes: int, largest: Callable[[bytes], str] = lambda _line: "") -> Iterator[Line]:
    """The numbered lines of a UTF-8 file (gzipped: `.gz`), a byte-order mark removed; an error in place of a bad line.

    `largest` says of a line over the limit which column is large. It is given lines of at most EXPLAINED_BYTES.

    Raises:
        InvalidInputError: the gzip data are damaged.
    """
    most, number = most_bytes(max_text_bytes), 0
    try:
        with open_binary(source) as file:
            while raw := file.readline(most + 1):
                number += 1
                if len(raw) <= most:
                    yield number, _text(source, number, raw)
                    continue
                whole = _whole(file, raw, most)
                said = largest(whole) if whole else ""
                yield number, too_large(source, number, "the line", max_text_bytes, said)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise bad_row(source, number + 1, f"the file cannot be unpacked: {reason_of(error)}") from error


def _whole(file: BinaryIO | gzip.GzipFile, raw: bytes, most: int) -> bytes:
    """Reads to the end of a line that begins with `raw`; the line, or nothing where it exceeds EXPLAINED_BYTES."""
    held: bytearray | None = bytearray(raw)
    while raw and not raw.endswith(b"\n"):
        raw = file.readline(most)
        if held is not None:
            held = held + raw if len(held) + len(raw) <= EXPLAINED_BYTES else None
    return bytes(held or b"")


def open_binary(source: Path) -> BinaryIO | gzip.GzipFile:
    """The file, open for reading; unpacked where it is gzipped."""
    return gzip.GzipFile(source) if source.suffix == ".gz" else source.open("rb")


def _text(source: Path, number: int, raw: bytes) -> str | InvalidInputError:
    if number == 1 and raw.startswith(UTF16_MARKS):
        return bad_row(source, number, UTF16)
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        return bad_row(source, number, f"not UTF-8 at byte {error.start} of the line; {TO_UTF8}")
