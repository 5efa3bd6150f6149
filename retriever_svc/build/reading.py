"""What a caller may say about reading a source, and the form in which every reader gives rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ragserve.errors import InvalidInputError
from ragserve.passage_rules import IN_AN_ID

Quotes = Literal["auto", "yes", "no"]
QUOTES = ("auto", "yes", "no")
WITH_QUOTES, WITHOUT_COLUMNS = ("tsv", "csv", "folder"), ("text", "markdown", "html", "pdf")
EMBEDDINGS = "embeddings"  # the column of vectors in Hugging Face's RAG data sets

Row: TypeAlias = dict[str, Any]
RawRow: TypeAlias = tuple[Path, int, Row | InvalidInputError]
Notify: TypeAlias = Callable[[str], None]


class MadeId(str):
    """An id that is made of a file's name, because the file names none."""


@dataclass(frozen=True)
class ReadOptions:
    """How the columns of a source are read.

    id_column, title_column, text_column: the columns that hold these; None: by their usual names.
    without_columns: columns that are left out.
    id_prefix: what ids that are made of a file's name begin with.
    quotes: what a quote at the beginning of a TSV or CSV field means. "yes": the field ends at the next quote, and may
        hold delimiters and line ends. "no": it is a character like any other. "auto": as "yes", but a quoted field
        whose lines read as records of their own is refused.
    """

    id_column: str | None = None
    title_column: str | None = None
    text_column: str | None = None
    without_columns: tuple[str, ...] = ()
    quotes: Quotes = "auto"
    id_prefix: str = ""

    def check(self) -> None:
        """Raises InvalidInputError for what cannot be."""
        if self.quotes not in QUOTES:
            raise InvalidInputError("quotes", f"quotes is {self.quotes!r}; it must be one of {', '.join(QUOTES)}")
        if IN_AN_ID.search(self.id_prefix):
            problem = "ids hold no control characters, and only UTF-8 text"
            raise InvalidInputError("id_prefix", f"id_prefix is {self.id_prefix!r}; {problem}")
        for (one, column), (other, same) in combinations(self._named().items(), 2):
            if column == same:
                raise InvalidInputError(other, f"{other} is {column!r}, as {one} is: a column holds one of them")
        for name, column in self._named().items():
            if column in self.without_columns:
                raise InvalidInputError(name, f"{name} is {column!r}, which without_columns leaves out: name another")

    def check_format(self, source_format: str) -> None:
        """Raises InvalidInputError for what has no meaning for a format."""
        if self.quotes != "auto" and source_format not in WITH_QUOTES:
            raise InvalidInputError("quotes", f"quotes is {self.quotes!r}; the format {source_format} has no quotes")
        if source_format in WITHOUT_COLUMNS:
            for name, column in self._named().items():
                raise InvalidInputError(
                    name, f"{name} is {column!r}, and a source of the format {source_format} has no columns"
                )

    def _named(self) -> dict[str, str]:
        columns = {"id_column": self.id_column, "title_column": self.title_column, "text_column": self.text_column}
        return {name: column for name, column in columns.items() if column is not None}
