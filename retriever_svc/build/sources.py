"""Readers of passage files: JSON lines, DPR's TSV (`psgs_w100.tsv`), CSV and Parquet.

Every format has the columns id and text, and may have title and metadata (a JSON object). Further columns become
entries of the metadata. Files may be gzipped (`.gz`), but for Parquet.
"""

from __future__ import annotations

import csv
import gzip
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ragserve.errors import InvalidInputError, NotFoundError

FORMATS = ("jsonl", "tsv", "csv", "parquet")
COLUMNS = ("id", "title", "text", "metadata")


@dataclass(frozen=True)
class SourcePassage:
    """A passage as it stands in a file; `line` counts from 1 (Parquet: the row)."""

    id: str
    title: str
    text: str
    metadata_json: str
    line: int


def guess_format(source: Path) -> str:
    """The format that a file's name says.

    Raises:
        InvalidInputError: it says none that is known.
    """
    suffixes = [suffix for suffix in source.suffixes if suffix != ".gz"]
    name = {".jsonl": "jsonl", ".ndjson": "jsonl"}.get(suffixes[-1] if suffixes else "", "".join(suffixes[-1:])[1:])
    if name not in FORMATS:
        raise InvalidInputError("source", f"{source}: the name does not end in .{', .'.join(FORMATS)}: say the format")
    return name


def read_passages(source: Path, source_format: str | None = None) -> Iterator[SourcePassage]:
    """The passages of a file, in order.

    Raises:
        NotFoundError: the file is not there.
        InvalidInputError: a row is bad; the message names file, line and column.
    """
    name = source_format or guess_format(source)
    if name not in FORMATS:
        raise InvalidInputError("source_format", f"source_format is {name!r}; it must be one of {', '.join(FORMATS)}")
    if not source.is_file():
        raise NotFoundError(f"{source} does not exist or is not a file", field="source")
    for line, row in READERS[name](source):
        yield _to_passage(source, line, row)


def bad_row(source: Path, line: int, message: str) -> InvalidInputError:
    """The error for a bad row, with file and line in front."""
    return InvalidInputError(f"{source}:{line}", f"{source}:{line}: {message}")


def _to_passage(source: Path, line: int, row: Mapping[str, Any]) -> SourcePassage:
    identifier = row.get("id")
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    texts: dict[str, Any] = {"id": identifier, "title": row.get("title") or "", "text": row.get("text")}
    for column, value in texts.items():
        if value is None:
            raise bad_row(source, line, f"column '{column}' is missing")
        if not isinstance(value, str):
            raise bad_row(source, line, f"column '{column}' is {value!r}; it must be a text")
        if not value.strip() and column != "title":
            raise bad_row(source, line, f"column '{column}' is empty")
        if not _is_unicode(value):
            raise bad_row(source, line, f"column '{column}' holds half a surrogate pair, which is no text")
    return SourcePassage(**texts, metadata_json=_metadata(source, line, row), line=line)


def _metadata(source: Path, line: int, row: Mapping[str, Any]) -> str:
    """The metadata column and the further columns as one JSON object; empty when there are none."""
    own = row.get("metadata")
    if isinstance(own, str):
        try:
            own = json.loads(own) if own.strip() else None
        except ValueError as error:
            raise bad_row(source, line, f"column 'metadata' is not JSON: {error}") from error
    if not isinstance(own, dict | None):
        raise bad_row(source, line, "column 'metadata' must be a JSON object")
    merged = {**{key: value for key, value in row.items() if key not in COLUMNS}, **(own or {})}
    if not merged:
        return ""
    try:
        return json.dumps(merged, ensure_ascii=False, allow_nan=False, default=_json_value)
    except (TypeError, ValueError) as error:
        raise bad_row(source, line, f"column 'metadata' or a further column cannot be kept as JSON: {error}") from error


def _json_value(value: object) -> str:
    if isinstance(value, date | datetime):
        return value.isoformat()
    raise TypeError(f"a value of type {type(value).__name__}")


def _is_unicode(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _open(source: Path) -> BinaryIO | gzip.GzipFile:
    return gzip.GzipFile(source) if source.suffix == ".gz" else source.open("rb")


def _lines(source: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, a byte-order mark removed."""
    with _open(source) as file:
        for number, raw in enumerate(file, start=1):
            try:
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise bad_row(source, number, f"not UTF-8 at byte {error.start} of the line") from error
            yield line


def _read_jsonl(source: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(_lines(source), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise bad_row(source, number, f"not JSON: {error}") from error
        if not isinstance(row, dict):
            raise bad_row(source, number, "not a JSON object")
        yield number, row


def _read_delimited(source: Path, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(_lines(source), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1  # a quoted text may span lines: name the first
        try:
            values = next(reader, None)
        except csv.Error as error:
            raise bad_row(source, line, f"badly quoted: {error}") from error
        if values is None:
            return
        if header is None:
            header = _header(source, values)
        elif values:
            if len(values) != len(header):
                raise bad_row(source, line, f"{len(values)} columns; the header has {len(header)}: {', '.join(header)}")
            yield line, dict(zip(header, values, strict=True))


def _header(source: Path, names: list[str]) -> list[str]:
    for column in ("id", "text"):
        if names.count(column) != 1:
            raise bad_row(source, 1, f"the header must name the column '{column}' once; it has: {', '.join(names)}")
    return names


def _read_parquet(source: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        file = pq.ParquetFile(source)
    except (pa.ArrowInvalid, OSError) as error:
        raise bad_row(source, 1, f"not a Parquet file: {error}") from error
    with file:
        _header(source, file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row


READERS: Mapping[str, Callable[[Path], Iterator[tuple[int, dict[str, Any]]]]] = {
    "jsonl": _read_jsonl,
    "tsv": lambda source: _read_delimited(source, "\t"),
    "csv": lambda source: _read_delimited(source, ","),
    "parquet": _read_parquet,
}
