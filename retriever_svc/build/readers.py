"""The formats of sources, and the reader of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ragserve.errors import InvalidInputError
from ragserve.files import file_error
from retriever_svc.build.columns import ColumnNames
from retriever_svc.build.folders import files_in, format_of
from retriever_svc.build.formats import arrow, delimited, documents, json_array, jsonl
from retriever_svc.build.lines import NoColumnError, UnreadFileError
from retriever_svc.build.reading import RawRow

Reader = Callable[[Path, ColumnNames, int], Iterator[RawRow]]


def _read_folder(source: Path, names: ColumnNames, max_text_bytes: int) -> Iterator[RawRow]:
    """The rows of every file; what is wrong with a whole file is one bad row."""
    found = files_in(source)
    for note in found.notes():
        names.notify(note)
    for folder, failed in found.closed:
        yield folder, 1, _unreadable(folder, failed)
    for file in found.files:
        try:
            yield from READERS[format_of(file.name) or "text"](file, names, max_text_bytes)
        except InvalidInputError as error:
            yield file, 1, error if isinstance(error, NoColumnError) else UnreadFileError(error.field, error.message)
        except OSError as error:
            yield file, 1, _unreadable(file, error)


def _unreadable(path: Path, error: OSError) -> InvalidInputError:
    return UnreadFileError(str(path), file_error(error, "read", path).message)


READERS: Mapping[str, Reader] = {
    "jsonl": jsonl.read_jsonl,
    "json": json_array.read_json,
    "tsv": lambda source, names, most: delimited.read_delimited(source, "\t", names, most),
    "csv": lambda source, names, most: delimited.read_delimited(source, ",", names, most),
    "parquet": arrow.read_parquet,
    "arrow": arrow.read_arrow,
    "lance": arrow.read_lance,
    "text": documents.read_text_file,
    "markdown": documents.read_markdown_file,
    "html": documents.read_html_file,
    "pdf": documents.read_pdf_file,
    "folder": _read_folder,
}
