"""Which passages a search may find, by their metadata: as Python says it, and as the services hand it on.

{"lang": "en", "kind": ["article", "list"], "year": between(1990, 2000), "day": Range(below="2021-07-01"),
 "source": none_of("web")}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from decimal import Decimal
from numbers import Integral, Real
from typing import Any, TypeAlias

from ragserve import arguments
from ragserve.errors import InvalidInputError

# Numbers (those of numpy too) and booleans stand for their JSON text, dates and times for ISO 8601.
Value: TypeAlias = str | int | float | bool | date | Decimal


@dataclass(frozen=True)
class Range:
    """Bounds of a value, at least one. A bound that is a number is compared with numbers, any other with texts.

    A text that reads as a number counts as one: for dates kept as text, write 2021-01-01 and not 2021.
    """

    at_least: Value | None = None
    above: Value | None = None
    at_most: Value | None = None
    below: Value | None = None


def between(at_least: Value, at_most: Value) -> Range:
    """Values from one bound to the other, both included."""
    return Range(at_least=at_least, at_most=at_most)


@dataclass(frozen=True)
class NoneOf:
    """Values that an entry may not have. Passages without the entry fulfil it."""

    values: tuple[Value, ...]


def none_of(*values: Value) -> NoneOf:
    """Any value but these, or no value."""
    return NoneOf(values)


@dataclass(frozen=True)
class Condition:
    """A test of one entry of the metadata, as texts: one of `equals`, `any_of`, `none_of` or bounds.

    The retriever checks it.
    """

    key: str
    equals: str | None = None
    any_of: tuple[str, ...] | None = None
    at_least: str | None = None
    above: str | None = None
    at_most: str | None = None
    below: str | None = None
    none_of: tuple[str, ...] | None = None


# By name of an entry of the metadata: its value, one of several, a range, or values that it may not have. All must be
# fulfilled. A list of conditions may have several for one entry.
Filter: TypeAlias = Mapping[str, Value | Sequence[Value] | Range | NoneOf] | Sequence[Condition]


DEFAULT_K = 5  # passages wanted of a retriever, where the caller does not say

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
    """The conditions of a filter.

    Raises:
        InvalidInputError: a value is none that metadata can have; the key is named.
    """
    if wanted is None:
        return ()
    if isinstance(wanted, Mapping):
        return tuple(_condition(key, value) for key, value in wanted.items())
    if isinstance(wanted, list | tuple) and all(isinstance(one, Condition) for one in wanted):
        return tuple(wanted)
    raise arguments.refused("filter", "filter", wanted, "a mapping, as {'lang': 'en'}, or a list of conditions")


def _condition(key: str, value: Any) -> Condition:
    arguments.text("filter", f"a key of filter ({arguments.shown(key)})", key)
    field, value = f"filter[{key!r}]", _plain(value)
    if isinstance(value, Range):
        given = {bound.name: getattr(value, bound.name) for bound in fields(Range)}
        bounds: dict[str, Any] = {name: _text(field, bound) for name, bound in given.items() if bound is not None}
        return Condition(key, **bounds)
    if isinstance(value, NoneOf):
        return Condition(key, none_of=tuple(_text(field, one) for one in value.values))
    if isinstance(value, Sequence | set | frozenset) and not isinstance(value, str | bytes):
        return Condition(key, any_of=tuple(_text(field, one) for one in value))
    return Condition(key, equals=_text(field, value))


def _plain(value: Any) -> Any:
    """Python's own type for a number, boolean, text or array of numpy; this module need not load numpy for that."""
    return value.tolist() if getattr(getattr(value, "dtype", None), "kind", "") in tuple("biufU") else value


def _text(field: str, value: Any) -> str:
    """A value as the text that the retriever compares with."""
    value = _plain(value)
    if isinstance(value, str):
        return arguments.text(field, field, value)
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bool):
        return "true" if value else "false"
    try:
        if isinstance(value, Integral):
            return str(int(value))
        if isinstance(value, Decimal) and value.is_finite():
            return str(value)
        if isinstance(value, Real) and math.isfinite(number := float(value)):
            return repr(number)
    except (ValueError, OverflowError) as error:  # more digits than Python writes, a fraction beyond float64
        raise InvalidInputError(field, f"{field} has a number that is too long; give its digits as a text") from error
    raise arguments.refused(field, field, value, "a text, a finite number, a boolean or a date")
