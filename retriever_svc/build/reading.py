"""What a caller may say about reading a source, and the form in which every reader gives rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ragserve.errors import InvalidInputError

Quotes = Literal["auto", "yes", "no"]
QUOTES = ("auto", "yes", "no")
EMBEDDINGS = "embeddings"  # the column of vectors in Hugging Face's RAG data sets

Row: TypeAlias = dict[str, Any]
RawRow: TypeAlias = tuple[Path, int, Row | InvalidInputError]
Notify: TypeAlias = Callable[[str], None]


@dataclass(frozen=True)
class ReadOptions:
    """How the columns of a source are read.

    id_column, title_column, text_column: the columns that hold these; None: by their usual names.
    without_columns: columns that are left out.
    quotes: what a quote at the beginning of a TSV or CSV field means. "yes": the field ends at the next quote, and may
        hold delimiters and line ends. "no": it is a character like any other. "auto": as "yes", but a quoted field
        whose lines read as records of their own is refused.
    """

    id_column: str | None = None
    title_column: str | None = None
    text_column: str | None = None
    without_columns: tuple[str, ...] = ()
    quotes: Quotes = "auto"

    def check(self) -> None:
        """Raises InvalidInputError for what cannot be."""
        if self.quotes not in QUOTES:
            raise InvalidInputError("quotes", f"quotes is {self.quotes!r}; it must be one of {', '.join(QUOTES)}")
        named = [name for name in (self.id_column, self.title_column, self.text_column) if name is not None]
        for name in named:
            if named.count(name) > 1:
                raise InvalidInputError("text_column", f"column {name!r} is named for two of id, title and text")
            if name in self.without_columns:
                raise InvalidInputError(
                    "without_columns", f"column {name!r} is named as id, title or text, and cannot be left out"
                )
