"""The rules for passages: what a passage may contain, and how large it may be. Every way a passage enters uses them.

Builds, `kb add`, upserts and the documents of a Generate request call the same functions, so the same passage is
accepted or refused everywhere, in the same words. Only the name of the place differs (FILE:LINE, or a request field).
All sizes are bytes of UTF-8: what is stored and what a message holds.

A row is what a caller gives; a passage is what is stored. A row whose text is split becomes several passages.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

from ragserve.arguments import check_range, shown
from ragserve.reasons import reason_of

# The largest k of a service (100) times this stays below the largest message (64 MiB).
MAX_PASSAGE_BYTES = 2**19
MAX_ID_BYTES = 2048
MAX_TEXT_BYTES = 2**20  # of one text before it is split; a 100-word passage has some 600
MOST_BYTES = 2**30  # of either limit
MAX_METADATA_LEVELS = 64  # Python's JSON reader gives up at some hundreds to thousands, depending on its version
MAX_METADATA_KEYS = 1000
MIN_CONTEXT_TOKENS = 8  # of question and passage together, as a generator reads them
CONTEXT_LIMIT = "question and passage share it, and the generator reads no longer ones; 0 is the longest"
# What files call the columns of a passage, in any case; docs/sources.md and the help of the command line list them.
USUAL_NAMES: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "_id", "docid"),  # _id: BEIR, docid: Pyserini
    "title": ("title",),
    "text": ("text", "contents", "content", "body", "passage"),  # contents: Pyserini
}
IN_AN_ID = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
IN_A_TEXT = re.compile("[\x00\ud800-\udfff]")


class Problem(NamedTuple):
    """What is wrong with a passage. `reason` continues a sentence that begins with the name of the column."""

    column: str
    reason: str


@dataclass(frozen=True)
class PassageLimits:
    """The largest row and passage, in bytes of UTF-8.

    passage_bytes: of id, title, text and metadata of a passage together.
    text_bytes: of the text of a row, before it is split.
    """

    passage_bytes: int = MAX_PASSAGE_BYTES
    text_bytes: int = MAX_TEXT_BYTES

    def check(self) -> None:
        """Raises InvalidInputError for a limit that cannot be."""
        for name, value in (("max_passage_bytes", self.passage_bytes), ("max_text_bytes", self.text_bytes)):
            check_range(name, value, 1, MOST_BYTES)


DEFAULT_LIMITS = PassageLimits()


def passage_problem(
    id: str,
    title: str,
    text: str,
    metadata_json: str = "",
    limits: PassageLimits = DEFAULT_LIMITS,
) -> Problem | None:
    """The first thing that is wrong with a row that is to be stored as it is; None if nothing is."""
    return row_problem(id, title, text, metadata_json, limits) or size_problem(id, title, text, metadata_json, limits)


def row_problem(
    id: str,
    title: str,
    text: str,
    metadata_json: str = "",
    limits: PassageLimits = DEFAULT_LIMITS,
) -> Problem | None:
    """The first thing that is wrong with a row before its text is split; None if nothing is."""
    problem = content_problem(id, title, text)
    if problem is None and metadata_json:
        try:
            parse_metadata(metadata_json)
        except ValueError as error:
            problem = Problem("metadata_json", str(error))
    return problem or row_size_problem(id, title, text, metadata_json, limits)


def document_problem(title: str, text: str, limits: PassageLimits = DEFAULT_LIMITS) -> Problem | None:
    """The first thing that is wrong with a document of a request, which has neither id nor metadata.

    Unlike a passage, it may be empty: the generator then answers from what it learned.
    """
    return content_problem("document", title, text or "empty") or size_problem("", title, text, "", limits)


def content_problem(id: str, title: str, text: str) -> Problem | None:
    """What is wrong with the characters of id, title or text. Sizes are not checked."""
    for column, value in (("id", id), ("text", text)):
        if not value.strip():
            return Problem(column, "is empty")
    for column, value, forbidden in (("id", id, IN_AN_ID), ("title", title, IN_A_TEXT), ("text", text, IN_A_TEXT)):
        reason = character_problem(value, forbidden)
        if reason:
            return Problem(column, reason)
    return None


def row_size_problem(
    id: str,
    title: str,
    text: str,
    metadata_json: str = "",
    limits: PassageLimits = DEFAULT_LIMITS,
) -> Problem | None:
    """What is too large about a row, however its text is split: the text, or what every part of it repeats."""
    if len(text) > limits.text_bytes // 4 and (size := len(text.encode())) > limits.text_bytes:
        return Problem("text", text_too_long(size, limits.text_bytes))
    rest = {"id": id, "title": title, "metadata_json": metadata_json}
    return _id_problem(id) or _together(rest, limits.passage_bytes, "without its text")


def size_problem(
    id: str,
    title: str,
    text: str,
    metadata_json: str = "",
    limits: PassageLimits = DEFAULT_LIMITS,
) -> Problem | None:
    """What is too large about a passage that is to be stored, or a document of a request."""
    columns = {"id": id, "title": title, "text": text, "metadata_json": metadata_json}
    return _id_problem(id) or _together(columns, limits.passage_bytes, "together")


def _id_problem(id: str) -> Problem | None:
    size = len(id.encode())
    return Problem("id", f"has {size} bytes; an id may have {MAX_ID_BYTES}") if size > MAX_ID_BYTES else None


def _together(columns: Mapping[str, str], most: int, how: str) -> Problem | None:
    """The largest of the columns, where they are larger than a passage may be."""
    if 4 * sum(map(len, columns.values())) <= most:
        return None
    sizes = {column: len(value.encode()) for column, value in columns.items()}
    total = sum(sizes.values())
    if total <= most:
        return None
    largest = max(sizes, key=lambda column: sizes[column])
    advice = "split the text" if largest == "text" else "shorten it"
    limit = f"a passage (id, title, text and metadata) may have {most} (max_passage_bytes) and has {total} {how}"
    return Problem(largest, f"has {sizes[largest]} bytes; {limit}: {advice}")


def text_too_long(size: int, most: int) -> str:
    """Why the text of a row is refused, whether a file or a request holds it."""
    return f"has {size} bytes; a text may have {most} (max_text_bytes): divide it or raise the limit"


def character_problem(value: str, forbidden: re.Pattern[str] = IN_A_TEXT) -> str:
    """Why a text may not hold one of its characters; empty if it may."""
    found = forbidden.search(value)
    if found is None:
        return ""
    character = found.group()
    if "\ud800" <= character <= "\udfff":
        return "holds half a surrogate pair, which is no text"
    return f"holds the control character U+{ord(character):04X} at position {found.start()}: remove it"


def parse_metadata(text: str) -> dict[str, Any]:
    """The object in a text. Raises ValueError, whose message continues a sentence that begins with the field."""
    try:
        found = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    except ValueError as error:
        raise ValueError(f"is not JSON: {reason_of(error)}") from error
    return check_metadata(found)


def check_metadata(value: object) -> dict[str, Any]:
    """The value, if it is an object that a passage may have. Raises ValueError as `parse_metadata` does."""
    if not isinstance(value, dict):
        raise ValueError(f"is {shown(value)}; it must be a JSON object")  # noqa: TRY004  (a value, not a type)
    keys = 0
    for path, item in _items(value, "", MAX_METADATA_LEVELS):
        if isinstance(item, dict):
            keys += len(item)
        elif isinstance(item, float) and not math.isfinite(item):
            raise ValueError(f"has {item} under {path!r}, which JSON does not have")
        elif isinstance(item, str) and (reason := character_problem(item)):
            raise ValueError(f"has a text under {path!r} that {reason}")
    if keys > MAX_METADATA_KEYS:
        raise ValueError(f"has {keys} keys; it may have {MAX_METADATA_KEYS}")
    return value


TOO_DEEP = f"is nested more than {MAX_METADATA_LEVELS} levels deep"


def _items(value: object, path: str, levels: int) -> Iterator[tuple[str, object]]:
    """A value and everything in it, each with its path. The keys of an object come as texts of its path."""
    yield path, value
    if not isinstance(value, dict | list):
        return
    if not levels:
        raise ValueError(TOO_DEEP)
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, child in pairs:
        if isinstance(key, str):
            yield path, key
        yield from _items(child, f"{path}.{key}" if path else str(key), levels - 1)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON value")
