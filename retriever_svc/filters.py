"""Filters on passages' metadata: what one may ask, its checks, and the rows of a knowledge base that pass.

A passage's metadata is a JSON object. Its strings are compared as they are, numbers and booleans by their JSON text
(1990, 1.50, true); null, lists and objects count as absent. A row without a condition's key never matches it.
"""

from __future__ import annotations

import json
import math
import re
import threading
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ragserve.errors import DataLossError, InvalidInputError

Mask: TypeAlias = NDArray[np.bool_]

FIELD = "options.filter"  # where a request has it
MAX_CONDITIONS = 32
MAX_VALUES = 1000  # of one any_of
KEPT_MASKS = 32  # masks of the filters asked for last
BLOCK_ROWS = 1024  # parsed in one call, which holds the interpreter for about a millisecond

NUMBER = r"^-?[0-9]+(\.[0-9]+)?([eE][+-]?[0-9]+)?$"
BOUNDS = {"at_least": pc.greater_equal, "above": pc.greater, "at_most": pc.less_equal, "below": pc.less}


@dataclass(frozen=True)
class Condition:
    """One test of one key: `equals`, `any_of`, or a range of at most one lower and one upper bound.

    A bound that is a finite number (digits, fraction and exponent as in JSON) is compared with values that are numbers
    too, as float64, and no other value matches it. Any other bound is compared with all values as text, by code
    points, which is what ISO dates need; a year alone is a number, so write 2021-01-01.
    """

    key: str
    equals: str | None = None
    any_of: tuple[str, ...] | None = None
    at_least: str | None = None
    at_most: str | None = None
    above: str | None = None
    below: str | None = None


@dataclass(frozen=True)
class Filter:
    """Conditions that must all hold; none holds of every row."""

    conditions: tuple[Condition, ...] = ()


def check_filter(wanted: Filter) -> None:
    """Raises InvalidInputError, naming `options.filter[i].key` and the like, for a filter that cannot be meant."""
    if len(wanted.conditions) > MAX_CONDITIONS:
        raise InvalidInputError(
            FIELD, f"{FIELD} has {len(wanted.conditions)} conditions; at most {MAX_CONDITIONS} are allowed"
        )
    for number, condition in enumerate(wanted.conditions):
        _check_condition(f"{FIELD}[{number}]", condition)


def number_of(text: str) -> float | None:
    """The finite number that a text is, in the grammar that ranges know, or None."""
    value = float(text) if re.fullmatch(NUMBER[1:-1], text) else math.inf
    return value if math.isfinite(value) else None


def _check_condition(field: str, condition: Condition) -> None:
    if not condition.key:
        raise InvalidInputError(f"{field}.key", f"{field}.key is empty: name a key of the metadata")
    given = [name for name in ("equals", "any_of") if getattr(condition, name) is not None]
    bounds = [name for name in BOUNDS if getattr(condition, name) is not None]
    kinds = len(given) + bool(bounds)
    if kinds != 1:
        raise InvalidInputError(field, f"{field} has {kinds} kinds of test; give one of equals, any_of or a range")
    if condition.any_of is not None and not 1 <= len(condition.any_of) <= MAX_VALUES:
        found = len(condition.any_of)
        raise InvalidInputError(f"{field}.any_of", f"{field}.any_of has {found} values; give 1 to {MAX_VALUES}")
    for one, other in (("at_least", "above"), ("at_most", "below")):
        if one in bounds and other in bounds:
            raise InvalidInputError(
                f"{field}.range.{other}", f"{field}.range has both {one} and {other}; give one of them"
            )
    if len(bounds) == 2:
        _check_order(f"{field}.range", *((name, str(getattr(condition, name))) for name in bounds))


def _check_order(field: str, low: tuple[str, str], high: tuple[str, str]) -> None:
    """Raises unless a value may lie between both bounds, each a name and its text."""
    numbers = [number_of(text) for _, text in (low, high)]
    if None not in numbers:
        empty = bool(numbers[0] > numbers[1])  # type: ignore[operator]  # neither is None
    elif numbers == [None, None]:
        empty = low[1] > high[1]
    else:
        raise InvalidInputError(
            f"{field}.{high[0]}",
            f"{field}.{low[0]} is {low[1]!r} and {high[0]} is {high[1]!r}: one of them is a number, the other is not",
        )
    if empty:
        raise InvalidInputError(
            f"{field}.{low[0]}", f"{field}.{low[0]} is {low[1]!r}, beyond {high[0]} {high[1]!r}: no value is in there"
        )


class MetadataColumns:
    """The metadata of some rows by key, and which rows a filter lets pass. Safe to call from several threads.

    The rows are parsed once, at the first filter or `load`; what then remains is each key's distinct values, and a
    row number and a value number for each value there is.
    """

    def __init__(self, metadata: pa.Array | pa.ChunkedArray) -> None:
        """`metadata`: a string for each row, a JSON object or empty."""
        self.size = len(metadata)
        self._unread: pa.ChunkedArray | None = (
            metadata if isinstance(metadata, pa.ChunkedArray) else pa.chunked_array([metadata])
        )
        self._columns: dict[str, _Column] = {}
        self._masks: OrderedDict[Filter, Mask] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def loaded(self) -> bool:
        """Whether the rows are parsed."""
        return self._unread is None

    def load(self) -> None:
        """Parse now what the first filter would have to wait for.

        Raises:
            DataLossError: a row's metadata is not a JSON object.
        """
        with self._lock:
            self._load()

    def mask(self, wanted: Filter) -> Mask:
        """Which rows pass, [n_rows], read-only; the filter must have passed `check_filter`. Raises as `load`."""
        with self._lock:
            self._load()
            found = self._masks.get(wanted)
            if found is None:
                found = self._masks[wanted] = self._evaluate(wanted)
            self._masks.move_to_end(wanted)
            if len(self._masks) > KEPT_MASKS:
                self._masks.popitem(last=False)
            return found

    def _load(self) -> None:
        if self._unread is not None:
            self._columns = _parse(self._unread)
            self._unread = None

    def _evaluate(self, wanted: Filter) -> Mask:
        mask = np.ones(self.size, dtype=np.bool_)
        for condition in wanted.conditions:
            column = self._columns.get(condition.key)
            mask &= column.rows_where(condition, self.size) if column else False
        mask.flags.writeable = False
        return mask


class _Column:
    """The values of one key: the n_values rows that have it, ascending, and each one's place among the distinct."""

    def __init__(self, rows: NDArray[np.int32], values: pa.ChunkedArray) -> None:
        encoded = values.combine_chunks().dictionary_encode()
        self._rows = rows
        self._distinct = encoded.dictionary
        self._places = encoded.indices.to_numpy().astype(np.min_scalar_type(len(encoded.dictionary)))
        self._numbers: pa.Array | None = None

    def rows_where(self, condition: Condition, n_rows: int) -> Mask:
        """Which of n_rows rows have a value that passes."""
        # "clip" never applies; with it numpy takes small integers without making them large first
        passing = self._passing(condition).to_numpy(zero_copy_only=False).take(self._places, mode="clip")
        if len(self._rows) == n_rows:
            return np.asarray(passing)
        mask = np.zeros(n_rows, dtype=np.bool_)
        mask[self._rows] = passing
        return mask

    def _passing(self, condition: Condition) -> pa.Array:
        """Which of the distinct values pass."""
        if condition.equals is not None:
            return pc.equal(self._distinct, condition.equals)
        if condition.any_of is not None:
            return pc.is_in(self._distinct, value_set=pa.array(condition.any_of, self._distinct.type))
        tests = [self._within(name, bound) for name in BOUNDS if (bound := getattr(condition, name)) is not None]
        return pc.and_(tests[0], tests[-1])

    def _within(self, name: str, bound: str) -> pa.Array:
        number = number_of(bound)
        if number is None:
            return BOUNDS[name](self._distinct, bound)
        if self._numbers is None:
            self._numbers = _to_numbers(self._distinct)
        return BOUNDS[name](self._numbers, number)


def _to_numbers(texts: pa.Array) -> pa.Array:
    """Float64, NaN (which no comparison holds of) where a text is not a finite number."""
    numeric = pc.match_substring_regex(texts, NUMBER)
    numbers = pc.cast(pc.if_else(numeric, texts, "nan"), pa.float64())
    return pc.if_else(pc.is_finite(numbers), numbers, math.nan)


def _parse(metadata: pa.ChunkedArray) -> dict[str, _Column]:
    rows: dict[str, list[NDArray[np.int32]]] = {}
    values: dict[str, list[pa.Array]] = {}
    for found in _parse_blocks(metadata):
        for key, (places, texts) in found.items():
            rows.setdefault(key, []).append(np.asarray(places, dtype=np.int32))
            values.setdefault(key, []).append(_to_strings(texts))
    return {key: _Column(np.concatenate(rows[key]), pa.chunked_array(values[key])) for key in rows}


def _parse_blocks(metadata: pa.ChunkedArray) -> Iterator[dict[str, tuple[list[int], list[str]]]]:
    """For each block of rows, the keys in it, each with row numbers and values."""
    for start in range(0, len(metadata), BLOCK_ROWS):
        texts = metadata.slice(start, BLOCK_ROWS).to_pylist()
        filled = [row for row, text in enumerate(texts) if text]
        found: defaultdict[str, tuple[list[int], list[str]]] = defaultdict(lambda: ([], []))
        for row, entries in zip(filled, _parse_objects(texts, filled, start), strict=True):
            for key, value in entries.items():
                if isinstance(value, bool):
                    value = "true" if value else "false"  # noqa: PLW2901
                if isinstance(value, str):
                    places, kept = found[key]
                    places.append(start + row)
                    kept.append(value)
        yield found


# Numbers stay the text that they are.
_read_json = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str).decode


def _parse_objects(texts: list[str], filled: list[int], start: int) -> list[dict[str, Any]]:
    """The objects of a block's filled rows; all at once, and only if that fails one by one, to name the bad row."""
    try:
        found = _read_json(f"[{','.join([texts[row] for row in filled])}]")
    except (ValueError, RecursionError):
        found = []
    if len(found) == len(filled) and all(isinstance(entries, dict) for entries in found):
        return list(found)
    return [_parse_object(texts[row], start + row) for row in filled]


def _parse_object(text: str, row: int) -> dict[str, Any]:
    try:
        entries = _read_json(text)
    except (ValueError, RecursionError):
        entries = None
    if not isinstance(entries, dict):
        raise DataLossError(f"metadata of row {row} is not a JSON object: {text[:100]!r}", field="metadata")
    return entries


def _to_strings(texts: list[str]) -> pa.Array:
    try:
        return pa.array(texts, pa.large_string())
    except UnicodeEncodeError:  # JSON's escapes can name lone surrogates, which no request can ask for
        return pa.array([text.encode(errors="replace").decode() for text in texts], pa.large_string())
