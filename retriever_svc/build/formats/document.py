"""A document as a reader gives it, and what the readers of documents share."""

from __future__ import annotations

import codecs
import importlib
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

from ragserve.errors import FailedPreconditionError


@dataclass(frozen=True)
class Document:
    """Title (empty: none was found), text and metadata of a document or a page of one.

    note: what a person should know of how it was read; empty for nothing.
    """

    title: str
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)
    note: str = ""


def document_package(name: str) -> ModuleType:
    """A package of the extra `documents`.

    Raises:
        FailedPreconditionError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise FailedPreconditionError(
            f"Markdown, HTML and PDF files need the package {name}: pip install 'ragserve[documents]'"
        ) from error


def decode(raw: bytes) -> str:
    """UTF-8, or UTF-16 with a byte-order mark; the mark is removed. Raises UnicodeDecodeError."""
    utf16 = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return raw.decode("utf-16" if utf16 else "utf-8-sig")
