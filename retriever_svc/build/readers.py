"""Reads the rows of passage files: JSON lines, TSV and CSV, Parquet, Lance, and folders of text and Markdown files.

A reader yields file, line and either the row's columns or what is wrong with it, so that its caller may go on.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import lance
import pyarrow as pa
import pyarrow.parquet as pq

from ragserve.errors import InvalidInputError
from retriever_svc.build.lines import DelimitedRecords, bad_row, read_lines, too_long
from retriever_svc.knowledge import DATASET_NAME

RawRow: TypeAlias = tuple[Path, int, dict[str, Any] | InvalidInputError]
READ_ROWS = 256  # rows of Parquet and Lance decoded together
TEXT_SUFFIXES = (".txt", ".md", ".markdown")
HEADING = re.compile(r"^ {0,3}#{1,6}[ \t]+(.+?)[ \t]*#*[ \t]*$", re.MULTILINE)


def _read_jsonl(source: Path, max_text_bytes: int) -> Iterator[RawRow]:
    for number, line in read_lines(source, max_text_bytes):
        if isinstance(line, InvalidInputError):
            yield source, number, line
        elif line.strip():
            yield source, number, _json_row(source, number, line)


def _json_row(source: Path, number: int, line: str) -> dict[str, Any] | InvalidInputError:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return bad_row(source, number, f"not JSON: {error}")
    return row if isinstance(row, dict) else bad_row(source, number, "not a JSON object")


def _read_delimited(source: Path, delimiter: str, max_text_bytes: int) -> Iterator[RawRow]:
    records = DelimitedRecords(source, delimiter, max_text_bytes)
    first = records.next_record()
    if first is None:
        return
    if isinstance(first[1], InvalidInputError):
        raise first[1]
    header = _header(source, first[1])
    while record := records.next_record(len(header)):
        line, values = record
        yield source, line, values if isinstance(values, InvalidInputError) else dict(zip(header, values, strict=True))


def _header(source: Path, names: list[str]) -> list[str]:
    for column in ("id", "text"):
        if names.count(column) != 1:
            raise bad_row(source, 1, f"the header must name the column '{column}' once; it has: {', '.join(names)}")
    return names


def _read_parquet(source: Path, _max_text_bytes: int) -> Iterator[RawRow]:
    try:
        file = pq.ParquetFile(source)
    except (pa.ArrowInvalid, OSError) as error:
        raise bad_row(source, 1, f"not a Parquet file: {error}") from error
    with file:
        _header(source, file.schema_arrow.names)
        yield from _numbered(source, file.iter_batches(batch_size=READ_ROWS))


def _read_lance(source: Path, _max_text_bytes: int) -> Iterator[RawRow]:
    dataset = open_lance(source)
    columns = [field.name for field in dataset.schema if not pa.types.is_fixed_size_list(field.type)]
    _header(source, columns)
    yield from _numbered(source, dataset.to_batches(columns=columns, batch_size=READ_ROWS, scan_in_order=True))


def _numbered(source: Path, batches: Iterator[pa.RecordBatch]) -> Iterator[RawRow]:
    number = 0
    try:
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                yield source, number, row
    except (pa.ArrowInvalid, OSError) as error:
        raise bad_row(source, number + 1, f"cannot be read: {error}") from error


def open_lance(source: Path) -> lance.LanceDataset:
    """The Lance dataset of a source: the directory itself, or the one in a knowledge base.

    Raises:
        InvalidInputError: it is none.
    """
    directory = source / DATASET_NAME if (source / DATASET_NAME).is_dir() else source
    try:
        return lance.dataset(str(directory))
    except (ValueError, OSError) as error:
        raise bad_row(source, 1, f"not a Lance dataset: {error}") from error


def text_files(folder: Path) -> Iterator[Path]:
    """Every .txt, .md and .markdown file below a folder, in one order; links to folders are not followed."""
    entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from text_files(Path(entry.path))
        elif entry.is_file() and entry.name.lower().endswith(TEXT_SUFFIXES):
            yield Path(entry.path)


def _read_folder(source: Path, max_text_bytes: int) -> Iterator[RawRow]:
    for file in text_files(source):
        if file.stat().st_size > max_text_bytes:
            yield file, 1, too_long(file, 1, "the file", max_text_bytes)
            continue
        try:
            text = file.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            yield file, 1, bad_row(file, 1, f"not UTF-8 at byte {error.start} of the file")
            continue
        yield file, 1, {"id": file.relative_to(source).as_posix(), "title": _title(file, text), "text": text}


def _title(file: Path, text: str) -> str:
    """The first Markdown heading, else the file's name without its ending."""
    heading = HEADING.search(text) if file.suffix.lower() != ".txt" else None
    return heading.group(1) if heading else file.stem


READERS: Mapping[str, Callable[[Path, int], Iterator[RawRow]]] = {
    "jsonl": _read_jsonl,
    "tsv": lambda source, most: _read_delimited(source, "\t", most),
    "csv": lambda source, most: _read_delimited(source, ",", most),
    "parquet": _read_parquet,
    "lance": _read_lance,
    "folder": _read_folder,
}
