"""The passages of a source that has no bad rows, and what a build told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ragserve.errors import InvalidInputError
from retriever_svc.build import BuildOptions
from retriever_svc.build.sources import SourcePassage, read_rows

WHOLE = BuildOptions(split="none")  # tiny passages are longer than a tiny encoder reads


def read_passages(source: Path, *options: Any, **named: Any) -> Iterator[SourcePassage]:
    """Raises the error of the first bad row."""
    for row in read_rows(source, *options, **named):
        if isinstance(row, InvalidInputError):
            raise row
        yield row


def without_counts(notes: list[str]) -> list[str]:
    """What a build told, without the lines that only count what was read."""
    return [note for note in notes if not re.match(r"read(ing)? [\d,]+ (files?|rows?)\b", note)]
