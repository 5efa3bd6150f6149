"""Lines and delimited records of text files, with the place of what is wrong, in bounded memory."""

from __future__ import annotations

import csv
import gzip
import sys
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, TypeAlias

from ragserve.errors import InvalidInputError

# A line or record holds a text, which JSON may write with six characters a byte, and 1 MiB of other columns.
ESCAPED_BYTES, OTHER_BYTES = 6, 2**20

Line: TypeAlias = tuple[int, str | InvalidInputError]
Record: TypeAlias = tuple[int, list[str] | InvalidInputError]


def bad_row(source: Path, line: int, message: str) -> InvalidInputError:
    """The error for a bad row, with file and line in front."""
    place = f"{source}:{line}".encode("utf-8", "backslashreplace").decode()
    return InvalidInputError(place, f"{place}: {message}")


def too_long(source: Path, line: int, what: str, max_text_bytes: int) -> InvalidInputError:
    """The error for a text over the limit, or what holds it."""
    hint = f"is too long: a text may have {max_text_bytes} bytes (max_text_bytes)"
    return bad_row(source, line, f"{what} {hint}")


def read_lines(source: Path, max_text_bytes: int) -> Iterator[Line]:
    """The numbered lines of a UTF-8 file (gzipped: `.gz`), a byte-order mark removed; an error in place of a bad line.

    Raises:
        InvalidInputError: the gzip data are damaged.
    """
    most, number = ESCAPED_BYTES * max_text_bytes + OTHER_BYTES, 0
    try:
        with _open(source) as file:
            while raw := file.readline(most + 1):
                number += 1
                long = len(raw) > most
                while long and raw and not raw.endswith(b"\n"):
                    raw = file.readline(most)
                yield (
                    number,
                    too_long(source, number, "the line", max_text_bytes) if long else _text(source, number, raw),
                )
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise bad_row(source, number + 1, f"the gzip data are damaged or end early: {error}") from error


def _open(source: Path) -> BinaryIO | gzip.GzipFile:
    return gzip.GzipFile(source) if source.suffix == ".gz" else source.open("rb")


def _text(source: Path, number: int, raw: bytes) -> str | InvalidInputError:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        return bad_row(source, number, f"not UTF-8 at byte {error.start} of the line")


class DelimitedRecords:
    """The records of a TSV or CSV file, each with the number of its first line.

    A quote that does not end swallows the lines after it. So after a broken record, reading goes on with the line after
    its first one; the lines of one record are kept until it is complete, and it may be no longer than a text.
    """

    def __init__(self, source: Path, delimiter: str, max_text_bytes: int) -> None:
        csv.field_size_limit(sys.maxsize)
        self._source, self._max_text_bytes = source, max_text_bytes
        self._lines = read_lines(source, max_text_bytes)
        self._again: deque[Line] = deque()
        self._taken: list[Line] = []
        self._bytes = 0
        self._reader = csv.reader(_Feed(self), delimiter=delimiter, strict=True)

    def next_line(self) -> str:
        """The next line for the parser."""
        line = self._again.popleft() if self._again else next(self._lines)
        self._taken.append(line)
        text = line[1]
        if isinstance(text, InvalidInputError):
            raise text
        self._bytes += len(text)
        if self._bytes > ESCAPED_BYTES * self._max_text_bytes + OTHER_BYTES:
            raise too_long(self._source, self._taken[0][0], "a quoted text has no end, or", self._max_text_bytes)
        return text

    def next_record(self, columns: int | None = None) -> Record | None:
        """The next record that is not empty, or what is wrong with it; None at the end of the file."""
        while True:
            self._taken, self._bytes = [], 0
            try:
                values = next(self._reader, None)
            except csv.Error as error:
                return self._broken(bad_row(self._source, self._taken[0][0], f"badly quoted: {error}"))
            except InvalidInputError as error:
                return self._broken(error)
            if values is None:
                return None
            if values and columns not in (None, len(values)):
                wrong = f"{len(values)} columns; the header has {columns}"
                return self._broken(bad_row(self._source, self._taken[0][0], wrong))
            if values:
                return self._taken[0][0], values

    def _broken(self, error: InvalidInputError) -> Record:
        self._again.extendleft(reversed(self._taken[1:]))
        return self._taken[0][0], error


class _Feed:
    """The iterator that a csv.reader reads; unlike a generator it goes on after it raised."""

    def __init__(self, records: DelimitedRecords) -> None:
        self._records = records

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        return self._records.next_line()
