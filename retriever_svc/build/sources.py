"""Checks the rows of a source of passages, whatever its format.

A passage has the columns id, title, text and metadata (a JSON object). Further columns become entries of the metadata.
A column `embeddings` holds vectors. In a folder, all files of known kinds are read.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from ragserve.errors import InvalidInputError, RagserveError
from ragserve.files import file_errors
from ragserve.passage_rules import (
    DEFAULT_LIMITS,
    PassageLimits,
    Problem,
    check_metadata,
    content_problem,
    parse_metadata,
    row_size_problem,
    size_problem,
)
from ragserve.printable import counted
from ragserve.reasons import reason_of
from retriever_svc.build.columns import ColumnNames
from retriever_svc.build.folders import files_in, format_of, looked_for
from retriever_svc.build.lines import bad_row, shown_path
from retriever_svc.build.readers import READERS
from retriever_svc.build.reading import EMBEDDINGS, Notify, RawRow, ReadOptions
from retriever_svc.knowledge import DATASET_NAME
from retriever_svc.splitting import Cut, split_passage

FORMATS = tuple(READERS)
DIRECTORIES = ("lance", "folder")
COLUMNS = ("id", "title", "text", "metadata")


@dataclass(frozen=True)
class SourcePassage:
    """A passage as it stands in a file.

    `line` counts from 1 (Parquet, Arrow, Lance: the row; PDF: the page); `row` from 0 over the whole source, bad ones
    too. `vector` is what the column `embeddings` holds, of any width; `further` are the columns kept as metadata.
    """

    id: str
    title: str
    text: str
    metadata_json: str
    line: int
    row: int = 0
    file: str = ""
    vector: np.ndarray | None = field(default=None, compare=False)
    further: tuple[str, ...] = field(default=(), compare=False)


SourceRow: TypeAlias = SourcePassage | InvalidInputError


def is_lance(source: Path) -> bool:
    """Whether a directory is a Lance dataset or a knowledge base."""
    return source.suffix == ".lance" or (source / DATASET_NAME).is_dir()


def guess_format(source: Path) -> str:
    """The format that a file's name says, or what a directory holds.

    Raises:
        InvalidInputError: it says none that is known.
    """
    if source.is_dir():
        return "lance" if is_lance(source) else "folder"
    name = format_of(source.name)
    if name is None:
        raise InvalidInputError(
            "source", f"{source}: the name does not end in one of {looked_for()}: say the format (--format)"
        )
    return name


def check_source(source: Path, source_format: str | None) -> str:
    """The format of a source that is there.

    Raises:
        InvalidInputError: it is not there, or the format is unknown.
    """
    if source_format is not None and source_format not in FORMATS:
        raise InvalidInputError(
            "source_format", f"source_format is {source_format!r}; it must be one of {', '.join(FORMATS)}"
        )
    if not source.exists():
        raise InvalidInputError("source", f"{source} does not exist")
    name = source_format or guess_format(source)
    if not (source.is_dir() if name in DIRECTORIES else source.is_file()):
        kind = "directory" if name in DIRECTORIES else "file"
        raise InvalidInputError("source", f"{source} is not a {kind}, which the format {name} needs")
    return name


def read_rows(
    source: Path,
    source_format: str | None = None,
    limits: PassageLimits = DEFAULT_LIMITS,
    options: ReadOptions | None = None,
    notify: Notify = lambda _message: None,
    pipe: str = "",
) -> Iterator[SourceRow]:
    """The rows of a source, in order, and an error in place of each bad row.

    `limits` hold for a row before its text is split. `notify` is told, in one line each, what is left out and what was
    taken for what. `pipe`: what the user calls the pipe that the source is a copy of, which rows, errors and
    notes then name.

    Raises:
        InvalidInputError: the source is not there, or it cannot be read at all (format, header, damage).
    """
    name, options = check_source(source, source_format), options or ReadOptions()
    options.check_format(name)

    def shown(text: str) -> str:
        return text.replace(str(source), pipe) if pipe else text

    root = source if source.is_dir() else source.parent
    names = ColumnNames(options, root, lambda note: notify(shown(note)), is_pipe=bool(pipe))
    rows = READERS[name](source, names, limits.text_bytes)
    for row, (file, line, values) in enumerate(_reading(source, rows, shown)):
        if isinstance(values, InvalidInputError):
            yield values
            continue
        vector = values.pop(EMBEDDINGS, None) if isinstance(values.get(EMBEDDINGS), np.ndarray) else None
        try:
            passage = _to_passage(file, line, row, values, limits)
        except InvalidInputError as error:
            yield error
        else:
            names.accepted(passage.id)
            yield passage if vector is None else replace(passage, vector=vector)
    names.report_unknown()


def _reading(source: Path, rows: Iterator[RawRow], shown: Callable[[str], str]) -> Iterator[RawRow]:
    """The same rows, their places and errors as a person is shown them.

    Raises RagserveError where the operating system does not let the source be read.
    """
    place = Path(shown(str(source)))
    try:
        with file_errors("read", source):
            for file, line, values in rows:
                if isinstance(values, InvalidInputError):
                    _rename(values, shown)
                yield place if file is source else file, line, values
    except RagserveError as error:
        _rename(error, shown)
        raise


def _rename(error: RagserveError, shown: Callable[[str], str]) -> None:
    error.field, error.message = shown(error.field), shown(error.message)


def no_passages(source: Path, rows: int, bad_rows: Sequence[str]) -> InvalidInputError:
    """The error for a source without passages: what is wrong with the rows that it has, or what was looked for."""
    why = f"{counted(rows, 'bad row')}, beginning with {bad_rows[0]}" if bad_rows else "it is empty"
    if not bad_rows and source.is_dir() and not is_lance(source):
        unread = files_in(source).unread_line()
        why = f"looked in it and its subfolders for {looked_for()}" + (f"; {unread}" if unread else "")
    return InvalidInputError("source", f"{source} holds no passages: {why}")


def split_row(row: SourcePassage, cut: Cut | None, limits: PassageLimits = DEFAULT_LIMITS) -> list[SourcePassage]:
    """The passages of a row. Raises InvalidInputError, with file and line, if one of them may not be stored."""
    try:
        passages = split_passage(row, cut)
    except InvalidInputError as error:
        raise bad_row(Path(row.file), row.line, f"column '{error.field}' {error.message}") from error
    for passage in passages:
        problem = size_problem(passage.id, passage.title, passage.text, passage.metadata_json, limits)
        if problem:
            raise _refused(row, problem)
    return passages


def _refused(row: SourcePassage, problem: Problem) -> InvalidInputError:
    column = problem.column.removesuffix("_json")
    advice = _largest_column(row) if column == "metadata" else ""
    return bad_row(Path(row.file), row.line, f"column '{column}' {problem.reason}{advice}")


def _largest_column(row: SourcePassage) -> str:
    """What to do where most of the metadata is a further column of the source."""
    entries: dict[str, Any] = json.loads(row.metadata_json)
    sizes = {name: len(json.dumps(value, ensure_ascii=False).encode()) for name, value in entries.items()}
    largest = max(sizes, key=lambda name: sizes[name])
    if largest not in row.further:
        return ""
    kept = f"Most of it is the column {largest!r} ({sizes[largest]} bytes), which is kept as metadata"
    return f". {kept}: leave it out (--without-column {largest})"


def _to_passage(source: Path, line: int, row: int, values: Mapping[str, Any], limits: PassageLimits) -> SourcePassage:
    identifier = values.get("id")
    if isinstance(identifier, int) and not isinstance(identifier, bool):
        identifier = str(identifier)
    title = values.get("title")
    texts: dict[str, Any] = {"id": identifier, "title": "" if title is None else title, "text": values.get("text")}
    for column, value in texts.items():
        _check_text(source, line, column, value)
    problem = content_problem(**texts)
    if problem:
        raise bad_row(source, line, f"column '{problem.column}' {problem.reason}")
    metadata, further = _metadata(source, line, values), tuple(key for key in values if key not in COLUMNS)
    place = shown_path(source)
    passage = SourcePassage(**texts, metadata_json=metadata, line=line, row=row, file=place, further=further)
    problem = row_size_problem(**texts, metadata_json=metadata, limits=limits)
    if problem:
        raise _refused(passage, problem)
    return passage


def _check_text(source: Path, line: int, column: str, value: object) -> None:
    if value is None:
        raise bad_row(source, line, f"column '{column}' is missing")
    if not isinstance(value, str):
        raise bad_row(source, line, f"column '{column}' is {reprlib.repr(value)}; it must be a text")


def _metadata(source: Path, line: int, values: Mapping[str, Any]) -> str:
    """The metadata column and the further columns as one JSON object; empty when there are none."""
    own = values.get("metadata")
    try:
        if isinstance(own, str):
            own = parse_metadata(own) if own.strip() else None
        merged = {key: value for key, value in values.items() if key not in COLUMNS}
        merged |= {} if own is None else check_metadata(own)
        check_metadata(merged)
    except ValueError as error:
        raise bad_row(source, line, f"column 'metadata' {error}") from error
    if not merged:
        return ""
    try:
        return json.dumps(merged, ensure_ascii=False, allow_nan=False, default=_json_value)
    except (TypeError, ValueError) as error:
        raise bad_row(
            source, line, f"column 'metadata' or a further column cannot be kept as JSON: {reason_of(error)}"
        ) from error


def _json_value(value: object) -> str:
    if isinstance(value, date | datetime):
        return value.isoformat()
    raise TypeError(f"a value of type {type(value).__name__}")
