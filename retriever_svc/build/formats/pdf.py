"""Reads the text of PDF files, page by page."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from ragserve.printable import counted
from ragserve.reasons import reason_of
from retriever_svc.build.formats.document import Document, document_package

NAMED = 10  # pages in a note


class NoTextError(Exception):
    """A PDF file that is in order, but has no text that can be read."""


def read_pdf(raw: bytes, notify: Callable[[str], None]) -> Iterator[tuple[int, Document | ValueError]]:
    """Number and text of every page that has text, with the title that the file's metadata name.

    A page that cannot be read is an error in its place. `notify` is told which pages have no text.

    Raises:
        FailedPreconditionError: pypdf is not installed.
        NoTextError: the file is encrypted, or its pages are images.
        ValueError: it is damaged or no PDF.
    """
    pypdf = document_package("pypdf")
    with _quiet():
        try:
            reader = pypdf.PdfReader(io.BytesIO(raw))
            opened = not reader.is_encrypted or _opens(reader)
            title, pages = (_title(reader), len(reader.pages)) if opened else ("", 0)
        except Exception as error:  # pypdf lets errors of every kind out of damaged files
            raise ValueError(f"cannot be read as a PDF: {_why(error)}") from error
    if not opened:
        raise NoTextError("it is encrypted: save a copy without a password")
    without: list[int] = []
    for number in range(1, pages + 1):
        try:
            text = _page_text(reader, number)
        except ValueError as error:
            yield number, error
            continue
        if text:
            yield number, Document(title, text, {"page": number})
        else:
            without.append(number)
    if len(without) == pages:
        raise NoTextError(f"there is no text on its {counted(pages, 'page')}; if they are images, run OCR first")
    if without:
        few = ", ".join(map(str, without[:NAMED]))
        more = f" and {len(without) - NAMED} more" if len(without) > NAMED else ""
        where = f"{len(without)} of {counted(pages, 'page')} ({few}{more})"
        notify(f"there is no text on {where}; if they are images, run OCR first")


def _opens(reader: Any) -> bool:
    """Whether an encrypted file opens without a password."""
    try:
        return bool(reader.decrypt(""))
    except Exception:  # also where the cipher's package is not installed
        return False


def _title(reader: Any) -> str:
    try:
        title = reader.metadata.title if reader.metadata else None
    except Exception:  # damaged metadata are no reason to refuse the text
        return ""
    return _clean(str(title)) if title else ""


def _page_text(reader: Any, number: int) -> str:
    with _quiet():
        try:
            return _clean(reader.pages[number - 1].extract_text())
        except Exception as error:
            raise ValueError(f"page {number} cannot be read: {_why(error)}") from error


def _why(error: Exception) -> str:
    """What pypdf says itself; it also lets errors of its own code out, which say nothing of the file."""
    own = type(error).__module__.startswith("pypdf") or isinstance(error, NotImplementedError)
    return reason_of(error) if own else "it is damaged"


def _clean(text: str) -> str:
    """The text without half surrogate pairs, which broken fonts make."""
    return text.encode("utf-8", "replace").decode().replace("\x00", "").strip()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps pypdf's remarks on files that it can read from the log."""
    logger = logging.getLogger("pypdf")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
