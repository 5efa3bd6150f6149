"""Reads JSON files that hold an array of objects, one object at a time."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO, cast

from ragserve.errors import InvalidInputError
from ragserve.reasons import reason_of
from retriever_svc.build.columns import ColumnNames
from retriever_svc.build.formats.jsonl import DECODER, largest_column
from retriever_svc.build.lines import EXPLAINED_BYTES, UTF16, UTF16_MARKS, bad_row, most_bytes, open_binary, too_large
from retriever_svc.build.reading import RawRow, Row

CHUNK = 2**16  # characters read together at first
SPACE = " \t\r\n"
HINT = 'write [{"text": "…"}, …]; for an object a line, say --format jsonl'


def read_json(source: Path, names: ColumnNames, max_text_bytes: int) -> Iterator[RawRow]:
    """A row for every object, counted from 1. Raises InvalidInputError where the rest cannot be read."""
    objects = _Objects(source, max_text_bytes)
    try:
        with open_binary(source) as raw, io.TextIOWrapper(cast(BinaryIO, raw), "utf-8-sig") as file:
            for number, found in objects.read(file):
                row: Row | InvalidInputError
                try:
                    row = found if isinstance(found, InvalidInputError) else names.row(source, number, found)
                except InvalidInputError as error:
                    row = error
                yield source, number, row
    except UnicodeDecodeError as error:
        utf16 = objects.number == 1 and error.object.startswith(UTF16_MARKS)
        raise bad_row(source, objects.number, UTF16 if utf16 else f"not UTF-8: {error.reason}") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise bad_row(source, objects.number, f"the file cannot be unpacked: {reason_of(error)}") from error


class _Objects:
    """The objects of an array, in bounded memory: no more than the largest one, and a chunk."""

    def __init__(self, source: Path, max_text_bytes: int) -> None:
        self._source, self._max_text_bytes = source, max_text_bytes
        self._most = most_bytes(max_text_bytes)
        self._text, self._start, self._line = "", 0, 1
        self._ended = False
        self.number = 1  # of the object that is read

    def read(self, file: IO[str]) -> Iterator[tuple[int, Row | InvalidInputError]]:
        if self._next(file) != "[":
            raise bad_row(self._source, 1, f"not a JSON array of objects: {HINT}")
        self._start += 1
        sign = self._next(file)
        while sign != "]":
            if sign != "{":
                raise self._bad(f"not a JSON object but {sign!r}" if sign else "the array does not end")
            yield self.number, self._object(file)
            self.number += 1
            sign = self._next(file)
            if sign == ",":
                self._start += 1
                sign = self._next(file)
                if sign == "]":
                    raise self._bad("a comma stands before the end of the array")
            elif sign != "]":
                raise self._bad(f"a comma is missing before {sign!r}" if sign else "the array does not end")
        self._start += 1
        if sign := self._next(file):
            raise self._bad(f"something stands after the end of the array: {sign!r}")

    def _object(self, file: IO[str]) -> Row | InvalidInputError:
        """The object at this place, or an error where it is too large.

        More is read until it is whole, twice as much each time, up to what is read to say why it is too large.
        """
        while True:
            try:
                found, end = DECODER.raw_decode(self._text, self._start)
            except (ValueError, RecursionError) as error:
                if isinstance(error, json.JSONDecodeError) and not self._ended:
                    if len(self._text) - self._start > max(self._most, EXPLAINED_BYTES):
                        raise self._too_large("") from error
                    self._more(file, len(self._text) - self._start)
                    continue
                raise self._unreadable(error) from error
            begin = self._start
            self._go_to(end)
            if 4 * (end - begin) > self._most and len(self._text[begin:end].encode()) > self._most:
                return self._too_large(largest_column(found))
            return dict(found)

    def _next(self, file: IO[str]) -> str:
        """The next character that is not space; empty at the end of the file."""
        while True:
            place = self._start
            while place < len(self._text) and self._text[place] in SPACE:
                place += 1
            self._go_to(place)
            if place < len(self._text):
                return self._text[place]
            if self._ended:
                return ""
            self._more(file, 0)

    def _more(self, file: IO[str], held: int) -> None:
        read = file.read(max(CHUNK, held))
        self._text, self._start = self._text[self._start :] + read, 0
        self._ended = not read

    def _go_to(self, place: int) -> None:
        self._line += self._text.count("\n", self._start, place)
        self._start = place

    def _too_large(self, largest: str) -> InvalidInputError:
        return too_large(self._source, self.number, "the object", self._max_text_bytes, largest)

    def _bad(self, message: str) -> InvalidInputError:
        return bad_row(self._source, self.number, f"{message}, on line {self._line}")

    def _unreadable(self, error: Exception) -> InvalidInputError:
        if isinstance(error, json.JSONDecodeError):
            self._go_to(error.pos)
            return self._bad(f"not JSON: {error.msg}")
        return self._bad(f"not JSON: {reason_of(error)}, in the object that begins")
