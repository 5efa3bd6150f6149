"""Reads JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ragserve.errors import InvalidInputError
from ragserve.reasons import reason_of
from retriever_svc.build.columns import ColumnNames
from retriever_svc.build.lines import bad_row, read_lines
from retriever_svc.build.reading import RawRow, Row


def read_jsonl(source: Path, names: ColumnNames, max_text_bytes: int) -> Iterator[RawRow]:
    """A row for every line that is not blank."""
    for number, line in read_lines(source, max_text_bytes, _largest_of):
        if isinstance(line, InvalidInputError):
            yield source, number, line
        elif line.strip():
            try:
                row: Row | InvalidInputError = names.row(source, number, _parse(source, number, line))
            except InvalidInputError as error:
                row = error
            yield source, number, row


def _parse(source: Path, number: int, line: str) -> Row:
    try:
        row = DECODER.decode(line.strip())
    except (ValueError, RecursionError) as error:
        reason, hint, column = reason_of(error), "", None
        if isinstance(error, json.JSONDecodeError):
            reason, column = error.msg, error.colno + len(line) - len(line.lstrip())
        if "\r" in line.strip():
            hint = ". The line holds a carriage return (CR): lines must end with LF or CRLF"
        raise bad_row(source, number, f"not JSON: {reason}{hint}", column=column) from error
    if not isinstance(row, dict):
        hint = ": write one object a line, without a list around them" if isinstance(row, list) else ""
        raise bad_row(source, number, f"not a JSON object{hint}")
    return row


def _largest_of(line: bytes) -> str:
    """Which column of a line over the limit is the largest; empty where the line cannot be read."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return ""
    return largest_column(row) if isinstance(row, dict) and row else ""


def largest_column(row: Row) -> str:
    """Which column of a row is the largest."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()}
    sizes = {key: len(text.encode("utf-8", "surrogatepass")) for key, text in texts.items()}
    name = max(sizes, key=lambda key: sizes[key])
    return f"Most of it is the column {name!r} ({sizes[name]} bytes)"


def _constant(name: str) -> None:
    """Read NaN, which Python and pandas write for a missing value, as null."""
    if name != "NaN":
        raise ValueError(f"{name} is not a JSON value")


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} is there twice")
    return found


DECODER = json.JSONDecoder(parse_constant=_constant, object_pairs_hook=_object)
