"""Reads TSV and CSV files, with the line of every record, in bounded memory."""

from __future__ import annotations

import csv
import re
import sys
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from ragserve.errors import InvalidInputError
from ragserve.printable import counted
from ragserve.reasons import reason_of
from retriever_svc.build.columns import ColumnNames
from retriever_svc.build.lines import Line, bad_row, most_bytes, read_lines, too_large
from retriever_svc.build.reading import Quotes, RawRow, Row

Record: TypeAlias = tuple[int, list[str] | InvalidInputError]
# Stands for a carriage return inside a line, which csv takes for a line end. No text decoded from UTF-8 holds it.
STRAY_CR = "\udc0d"
HOW_TO_QUOTE = "if quotes are characters of the text, say so (--quotes no)"
DELIMITERS = {",": "comma", "\t": "tab", ";": "semicolon", "|": "vertical bar"}
QUOTED = re.compile(r'"[^"]*"')
LETTERS, DIGITS = re.compile(r"[^\W\d_]+"), re.compile(r"\d+")


def read_delimited(source: Path, delimiter: str, names: ColumnNames, max_text_bytes: int) -> Iterator[RawRow]:
    """A row for every record after the header. An empty field of a further column is no value."""
    delimiter = _delimiter(source, delimiter, names, max_text_bytes)
    records = DelimitedRecords(source, delimiter, max_text_bytes, names.options.quotes)
    first = records.next_record()
    if first is None:
        return
    line, header = first
    if isinstance(header, InvalidInputError):
        raise header
    header = [name.strip() for name in header]
    if any("\r" in name for name in header):
        raise bad_row(source, line, "the header holds a carriage return (CR): lines must end with LF or CRLF")
    try:
        plan = names.plan(source, line, header)
    except InvalidInputError as error:
        raise type(error)(error.field, f"{error.message}; the first line must name the columns") from None
    id_column, further = dict(plan.columns).get("id"), frozenset(plan.further)
    records.expect(len(header), header.index(id_column) if id_column in header else None)
    while record := records.next_record():
        line, values = record
        row: Row | InvalidInputError
        if isinstance(values, InvalidInputError):
            row = values
        else:
            fields = zip(header, values, strict=True)
            row = names.row(source, line, {name: value for name, value in fields if value or name not in further})
        yield source, line, row


def _delimiter(source: Path, usual: str, names: ColumnNames, max_text_bytes: int) -> str:
    """What separates the columns: the usual character, or, where the header has none, the one it has most often.

    Excel separates the columns of CSV with semicolons where a comma stands in decimal numbers.
    """
    lines = (text for _, text in read_lines(source, max_text_bytes) if isinstance(text, str))
    header = next(filter(str.strip, lines), "")
    bare = QUOTED.sub("", header)
    found = max(DELIMITERS, key=bare.count)
    if usual in bare or found not in bare or header.strip() == names.options.text_column:
        return usual
    names.note(f"{source}: its first line has no {DELIMITERS[usual]}, so columns end at a {DELIMITERS[found]}")
    return found


class DelimitedRecords:
    """The records of a TSV or CSV file, each with the number of its first line.

    A quote that does not end swallows the lines after it. So after a broken record, reading goes on with the line after
    its first one; the lines of one record are kept until it is complete, and it may be no longer than a text.
    """

    def __init__(self, source: Path, delimiter: str, max_text_bytes: int, quotes: Quotes = "auto") -> None:
        csv.field_size_limit(sys.maxsize)
        self._source, self._delimiter, self._max_text_bytes = source, delimiter, max_text_bytes
        self._quotes = quotes
        self._columns: int | None = None
        self._id_index: int | None = None
        self._lines = read_lines(source, max_text_bytes)
        self._damage: InvalidInputError | None = None
        self._again: deque[Line] = deque()
        self._taken: list[Line] = []
        self._bytes = 0
        feed = _Feed(self)
        if quotes == "no":
            self._reader = csv.reader(feed, delimiter=delimiter, strict=True, quoting=csv.QUOTE_NONE)
        else:
            self._reader = csv.reader(feed, delimiter=delimiter, strict=True)

    def expect(self, columns: int, id_index: int | None) -> None:
        """Refuse records with another number of columns; one of them may be the id."""
        self._columns, self._id_index = columns, id_index

    def next_line(self) -> str:
        """The next line for the parser."""
        line = self._again.popleft() if self._again else self._next_of_file()
        self._taken.append(line)
        text = line[1]
        if isinstance(text, InvalidInputError):
            raise text
        self._bytes += len(text.encode())
        if self._bytes > most_bytes(self._max_text_bytes):
            first, what = self._taken[0][0], "a quoted text has no end, or the record"
            raise too_large(self._source, first, what, self._max_text_bytes)
        return _mark_stray_returns(text) if "\r" in text else text

    def _next_of_file(self) -> Line:
        try:
            return next(self._lines)
        except InvalidInputError as error:
            self._damage = error
            raise

    def next_record(self) -> Record | None:
        """The next record that is not empty, or what is wrong with it; None at the end of the file.

        Raises:
            InvalidInputError: the file is damaged, and the rest cannot be read.
        """
        while True:
            self._taken, self._bytes = [], 0
            try:
                values = next(self._reader, None)
            except csv.Error as error:
                return self._broken(self._bad(f"badly quoted: {reason_of(error)}; {HOW_TO_QUOTE}"))
            except InvalidInputError as error:
                if self._damage is not None:
                    raise
                return self._broken(error)
            if values is None:
                return None
            if len(self._taken) > 1 and self._quotes == "auto" and self._swallows_records():
                last = self._taken[-1][0]
                return self._broken(
                    self._bad(
                        f"badly quoted: the quoted text goes on to line {last}, and lines of it read as records; "
                        f"{HOW_TO_QUOTE}, and if it is one text of several lines, --quotes yes"
                    )
                )
            if values and self._columns not in (None, len(values)):
                return self._broken(self._bad(f"{counted(len(values), 'column')}; the header has {self._columns}"))
            if values:
                return self._taken[0][0], [value.replace(STRAY_CR, "\r") for value in values]

    def _swallows_records(self) -> bool:
        """Whether lines of a quoted text read as records of their own.

        Tabs are rare in texts, so one line with the right number of columns is enough. Commas are not: all lines must
        have it, and ids that look like that of the first line.
        """
        if self._columns is None or self._columns < 2:
            return False
        first, *others = ([field.strip() for field in str(text).split(self._delimiter)] for _, text in self._taken)
        full = [len(fields) == self._columns for fields in others]
        if self._delimiter == "\t":
            return any(full)
        index = self._id_index
        if index is None or index >= len(first) or not all(full):
            return False
        return {_shape(fields[index]) for fields in others} == {_shape(first[index])}

    def _bad(self, message: str) -> InvalidInputError:
        return bad_row(self._source, self._taken[0][0], message)

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


def _mark_stray_returns(text: str) -> str:
    body = text.removesuffix("\n").removesuffix("\r")
    return body.replace("\r", STRAY_CR) + text[len(body) :]


def _shape(identifier: str) -> str:
    """What an id looks like: letters as `a`, digits as `0`."""
    return DIGITS.sub("0", LETTERS.sub("a", identifier))
