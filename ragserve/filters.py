"""Which passages a search may find, by their metadata: as Python says it, and as the services hand it on.

{"lang": "en", "kind": ["article", "list"], "year": between(1990, 2000), "day": Range(below="2021-07-01")}
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from typing import Any, TypeAlias

from ragserve.errors import InvalidInputError

# Numbers and booleans stand for their JSON text, dates and times for ISO 8601.
Value: TypeAlias = str | int | float | bool | date


@dataclass(frozen=True)
class Range:
    """Bounds of a value, at least one. Numbers are compared as numbers, everything else as text.

    A text that is a number counts as one: for dates kept as text, write 2021-01-01 and not 2021.
    """

    at_least: Value | None = None
    above: Value | None = None
    at_most: Value | None = None
    below: Value | None = None


def between(at_least: Value, at_most: Value) -> Range:
    """Values from one bound to the other, both included."""
    return Range(at_least=at_least, at_most=at_most)


# By name of an entry of the metadata: its value, one of several, or a range. All of them must be fulfilled.
Filter: TypeAlias = Mapping[str, Value | Sequence[Value] | Range]


@dataclass(frozen=True)
class Condition:
    """A test of one entry of the metadata, as texts: one of `equals`, `any_of` or bounds. The retriever checks it."""

    key: str
    equals: str | None = None
    any_of: tuple[str, ...] | None = None
    at_least: str | None = None
    above: str | None = None
    at_most: str | None = None
    below: str | None = None


# Inner product of vectors, BM25 of words, and two hybrids: a weighted sum, reciprocal rank fusion.
SEARCH_KINDS = ("dense", "bm25", "weighted", "rrf")


@dataclass(frozen=True)
class SearchOptions:
    """Conditions that passages must fulfil, what they are found by, and how an approximate index searches.

    kind: one of SEARCH_KINDS; empty: the retriever's setting, as a weight of None and a 0 are.
    """

    filter: tuple[Condition, ...] = ()
    nprobe: int = 0
    ef_search: int = 0
    kind: str = ""
    lexical_weight: float | None = None


def conditions(wanted: Filter | None) -> tuple[Condition, ...]:
    """The conditions of a filter, one for each key.

    Raises:
        InvalidInputError: a value is none that metadata can have; the key is named.
    """
    if wanted is None:
        return ()
    if not isinstance(wanted, Mapping):
        raise InvalidInputError("filter", f"filter is {wanted!r}; it must be a mapping, as {{'lang': 'en'}}")
    return tuple(_condition(key, value) for key, value in wanted.items())


def _condition(key: str, value: Value | Sequence[Value] | Range) -> Condition:
    field = f"filter[{key!r}]"
    if isinstance(value, Range):
        given = {bound.name: getattr(value, bound.name) for bound in fields(Range)}
        bounds: dict[str, Any] = {name: _text(field, bound) for name, bound in given.items() if bound is not None}
        return Condition(key, **bounds)
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
        return Condition(key, any_of=tuple(_text(field, one) for one in value))
    return Condition(key, equals=_text(field, value))


def _text(field: str, value: object) -> str:
    """A value as the text that the retriever compares with."""
    if isinstance(value, str):
        return value
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    raise InvalidInputError(field, f"{field} is {value!r}; it must be a text, a finite number, a boolean or a date")
