"""Reads documents: text, Markdown, HTML and PDF files. A file is one passage, of a PDF every page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ragserve.errors import InvalidInputError
from ragserve.passage_rules import text_too_long
from retriever_svc.build.columns import ColumnNames
from retriever_svc.build.formats.document import Document, decode
from retriever_svc.build.formats.html import read_html
from retriever_svc.build.formats.markdown import read_markdown
from retriever_svc.build.formats.pdf import NoTextError, read_pdf
from retriever_svc.build.lines import TO_UTF8, UnreadFileError, bad_row, most_bytes
from retriever_svc.build.reading import RawRow, Row

PDF_BYTES = 2**28


def read_text_file(source: Path, names: ColumnNames, max_text_bytes: int) -> Iterator[RawRow]:
    """A plain text: one passage, named after its file."""
    raw = _read(source, most_bytes(max_text_bytes), max_text_bytes)
    yield source, 1, _row(source, names, names.made_id(source), Document("", _decoded(source, raw)))


def read_markdown_file(source: Path, names: ColumnNames, max_text_bytes: int) -> Iterator[RawRow]:
    """A Markdown file: one passage."""
    text = _decoded(source, _read(source, max_text_bytes, max_text_bytes))
    try:
        document = read_markdown(text)
    except ValueError as error:
        raise bad_row(source, 1, str(error)) from error
    if document.note:
        names.note(f"{source}: {document.note}")
    yield source, 1, _row(source, names, names.made_id(source), document)


def read_html_file(source: Path, names: ColumnNames, max_text_bytes: int) -> Iterator[RawRow]:
    """A page of HTML: one passage."""
    raw = _read(source, most_bytes(max_text_bytes), max_text_bytes)
    try:
        document = read_html(raw)
    except ValueError as error:
        raise bad_row(source, 1, str(error)) from error
    yield source, 1, _row(source, names, names.made_id(source), document)


def read_pdf_file(source: Path, names: ColumnNames, max_text_bytes: int) -> Iterator[RawRow]:
    """A PDF file: a passage for every page that has text. A file without any is noted and left out."""
    if (size := source.stat().st_size) > PDF_BYTES:
        raise bad_row(source, 1, f"the file has {size} bytes; a PDF may have {PDF_BYTES}: divide it")
    try:
        for page, found in read_pdf(source.read_bytes(), lambda note: names.note(f"{source}: {note}")):
            if isinstance(found, ValueError):
                yield source, page, bad_row(source, page, str(found))
            else:
                yield source, page, _row(source, names, names.made_id(source, page), found)
    except NoTextError as error:
        names.notify(f"skipped {source}: {error}")
    except ValueError as error:
        raise bad_row(source, 1, str(error)) from error


def _row(source: Path, names: ColumnNames, identifier: str, document: Document) -> Row | InvalidInputError:
    if not document.text.strip():
        problem = "the file holds no text" if source.stat().st_size else "the file is empty"
        return bad_row(source, 1, problem, UnreadFileError)
    title, metadata = document.title or names.title(source), names.wanted(document.metadata)
    return {"id": identifier, "title": title, "text": document.text, "metadata": metadata or None}


def _read(source: Path, most: int, max_text_bytes: int) -> bytes:
    size = source.stat().st_size
    if size > most:
        raise bad_row(source, 1, f"the file {text_too_long(size, max_text_bytes)}")
    return source.read_bytes()


def _decoded(source: Path, raw: bytes) -> str:
    try:
        return decode(raw)
    except UnicodeDecodeError as error:
        raise bad_row(source, 1, f"not UTF-8 at byte {error.start} of the file; {TO_UTF8}") from error
