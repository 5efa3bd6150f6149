"""Filters on passages' metadata: what one may ask, its checks, and the rows of a knowledge base that pass.

A passage's metadata is a JSON object, and a condition gives texts. What the two read as says how they are compared:

- Where both read as JSON numbers, they are compared by their exact value: 1990, 1990.0 and 1.99e3 are the same number,
  and so are the texts "1.10" and "1.1". It makes no difference whether the passage has a number or such a text.
- A number equals nothing else, and is in no range with a bound that is not a number.
- Any other text equals the same text only ("007" is no JSON number). Ranges compare it by code points.
- true and false are compared as those texts.
- null, lists and objects count as absent. A row without a condition's key passes `none_of` and no other test.
"""

from __future__ import annotations

import json
import operator
import threading
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ragserve.arguments import shown
from ragserve.errors import DataLossError, InvalidInputError
from retriever_svc.numerals import NUMBER, number_of

Mask: TypeAlias = NDArray[np.bool_]

FIELD = "options.filter"  # where a request has it
MAX_CONDITIONS = 32
MAX_VALUES = 1000  # of one any_of or none_of
KEPT_MASKS = 32  # masks of the filters asked for last
BLOCK_ROWS = 1024  # parsed in one call, which holds the interpreter for about a millisecond

KINDS = ("equals", "any_of", "none_of")
BOUNDS = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}
TEXT_BOUNDS = {"at_least": pc.greater_equal, "above": pc.greater, "at_most": pc.less_equal, "below": pc.less}


@dataclass(frozen=True)
class Condition:
    """One test of one key: `equals`, `any_of`, `none_of`, or a range of at most one lower and one upper bound.

    A bound that reads as a number is compared with numbers, and with texts that read as numbers. Any other bound is
    compared with texts by code points, which is what ISO dates need; a year alone is a number, so write 2021-01-01.
    """

    key: str
    equals: str | None = None
    any_of: tuple[str, ...] | None = None
    at_least: str | None = None
    at_most: str | None = None
    above: str | None = None
    below: str | None = None
    none_of: tuple[str, ...] | None = None

    @property
    def values(self) -> tuple[str, ...]:
        """The texts that `equals` or `any_of` allow."""
        return self.any_of or (() if self.equals is None else (self.equals,))


@dataclass(frozen=True)
class Filter:
    """Conditions that must all hold. Without conditions every row passes."""

    conditions: tuple[Condition, ...] = ()


def check_filter(wanted: Filter) -> None:
    """Raises InvalidInputError, naming `options.filter[i].key` and the like, for a filter that is not valid."""
    if len(wanted.conditions) > MAX_CONDITIONS:
        raise InvalidInputError(FIELD, f"{FIELD} has {len(wanted.conditions)} conditions; it may have {MAX_CONDITIONS}")
    for number, condition in enumerate(wanted.conditions):
        _check_condition(f"{FIELD}[{number}]", condition)


def _check_condition(field: str, condition: Condition) -> None:
    if not condition.key:
        raise InvalidInputError(f"{field}.key", f"{field}.key is empty: name a key of the metadata")
    of_key = f" (key {shown(condition.key)})"  # a caller of the Python client has given no number, but the key
    given = [name for name in KINDS if getattr(condition, name) is not None]
    bounds = [name for name in BOUNDS if getattr(condition, name) is not None]
    kinds = len(given) + bool(bounds)
    if kinds != 1:
        raise InvalidInputError(
            field, f"{field}{of_key} has {kinds} kinds of test; give one of equals, any_of, none_of or a range"
        )
    for name in given:
        values = getattr(condition, name)
        if name != "equals" and not 1 <= len(values) <= MAX_VALUES:
            raise InvalidInputError(
                f"{field}.{name}", f"{field}.{name}{of_key} has {len(values)} values; give 1 to {MAX_VALUES}"
            )
    _check_utf8(field, condition, [*given, *bounds])
    for one, other in (("at_least", "above"), ("at_most", "below")):
        if one in bounds and other in bounds:
            raise InvalidInputError(
                f"{field}.range.{other}", f"{field}.range{of_key} has both {one} and {other}; give one of them"
            )
    if len(bounds) == 2:
        _check_order(f"{field}.range", of_key, *((name, str(getattr(condition, name))) for name in bounds))


def _check_utf8(field: str, condition: Condition, names: list[str]) -> None:
    """Raises InvalidInputError for half a surrogate pair, which only callers in this process can pass."""
    for name in ("key", *names):
        value = getattr(condition, name)
        try:
            "".join(value).encode()
        except UnicodeEncodeError as error:
            place = f"{field}.range.{name}" if name in BOUNDS else f"{field}.{name}"
            raise InvalidInputError(place, f"{place} is not UTF-8 text") from error


def _check_order(field: str, of_key: str, low: tuple[str, str], high: tuple[str, str]) -> None:
    """Raises unless a value may lie between both bounds, each a name and its text."""
    (low_name, low_text), (high_name, high_text) = low, high
    least, most = number_of(low_text), number_of(high_text)
    given = f"{field}{of_key} has {low_name} {shown(low_text)} and {high_name} {shown(high_text)}"
    if (least is None) != (most is None):
        text, number = (low_text, high_text) if least is None else (high_text, low_text)
        raise InvalidInputError(
            f"{field}.{high_name}",
            f"{given}: {shown(text)} is a text and {shown(number)} a number. Give two numbers, with decimal points, or "
            "two texts",
        )
    if least is None or most is None:
        empty, equal = low_text > high_text, low_text == high_text
    else:
        empty, equal = least > most, least == most
    if empty or (equal and (low_name, high_name) != ("at_least", "at_most")):
        raise InvalidInputError(f"{field}.{low_name}", f"{given}: no value is between them")


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
        self._columns: dict[_Name, _Column] = {}
        self._nested: dict[str, NDArray[np.int32]] = {}  # rows that have a list or an object, by key
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

    def keys(self, alive: Mask | None = None) -> Counter[str]:
        """How many of the rows that are alive (None: all) have a text, number or boolean, by key. Raises as `load`."""
        with self._lock:
            self._load()
            found: Counter[str] = Counter()
            for (key, _), column in self._columns.items():
                found[key] += column.count(alive)
            return +found

    def nested(self, alive: Mask | None = None) -> Counter[str]:
        """How many of the rows that are alive (None: all) have a list or an object, by key. Raises as `load`."""
        with self._lock:
            self._load()
            counts = {key: len(rows) if alive is None else alive[rows].sum() for key, rows in self._nested.items()}
            return +Counter({key: int(count) for key, count in counts.items()})

    def only_numbers(self, key: str) -> bool:
        """Whether all values of a key that can be filtered read as numbers, or there are none. Raises as `load`."""
        with self._lock:
            self._load()
            return all(self._columns[name].only_numbers for name in _names(key) if name in self._columns)

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
            self._columns, self._nested = _parse(self._unread)
            self._unread = None

    def _evaluate(self, wanted: Filter) -> Mask:
        mask = np.ones(self.size, dtype=np.bool_)
        for condition in wanted.conditions:
            mask &= self._rows_where(condition)
        mask.flags.writeable = False
        return mask

    def _rows_where(self, condition: Condition) -> Mask:
        if condition.none_of is not None:
            return ~self._rows_where(replace(condition, any_of=condition.none_of, none_of=None))
        columns = [self._columns[name] for name in _names(condition.key) if name in self._columns]
        masks = [column.rows_where(condition, self.size) for column in columns]
        return np.logical_or.reduce(masks) if masks else np.zeros(self.size, np.bool_)


class _Column:
    """The texts, or the numbers, of one key.

    `rows` are the n_values rows that have one, ascending; `values` are theirs.
    """

    def __init__(self, rows: NDArray[np.int32], values: pa.ChunkedArray, *, numeric: bool) -> None:
        encoded = values.combine_chunks().dictionary_encode()
        self._rows = rows
        self._numeric = numeric
        self._distinct = encoded.dictionary
        self._places = encoded.indices.to_numpy().astype(np.min_scalar_type(len(encoded.dictionary)))
        self._floats: NDArray[np.float64] | None = None

    def rows_where(self, condition: Condition, n_rows: int) -> Mask:
        """Which of n_rows rows have a value that passes."""
        # "clip" never applies; with it numpy takes small integers without making them large first
        passing: Mask = self._passing(condition).take(self._places, mode="clip")
        if len(self._rows) == n_rows:
            return passing
        mask = np.zeros(n_rows, dtype=np.bool_)
        mask[self._rows] = passing
        return mask

    @property
    def only_numbers(self) -> bool:
        """Whether every value reads as a number."""
        return not np.isnan(self._as_floats()).any()

    def count(self, alive: Mask | None) -> int:
        """How many of the rows that are alive have a value."""
        return len(self._rows) if alive is None else int(np.count_nonzero(alive[self._rows]))

    def _passing(self, condition: Condition) -> Mask:
        """Which of the distinct values pass."""
        if condition.values:
            return self._equal(condition.values)
        tests = [self._within(name, bound) for name in BOUNDS if (bound := getattr(condition, name)) is not None]
        return tests[0] & tests[-1]

    def _equal(self, values: tuple[str, ...]) -> Mask:
        numbers = {number for value in values if (number := number_of(value)) is not None}
        if self._numeric:
            return self._equal_numbers(numbers)
        same = _mask(pc.is_in(self._distinct, value_set=pa.array(values, self._distinct.type)))
        return same | self._equal_numbers(numbers) if numbers else same

    def _equal_numbers(self, wanted: set[Decimal]) -> Mask:
        near = pc.is_in(
            pa.array(self._as_floats()), value_set=pa.array([float(one) + 0.0 for one in wanted], pa.float64())
        )
        return self._settled(_mask(near), _mask(near), lambda number: number in wanted)

    def _within(self, name: str, bound: str) -> Mask:
        number = number_of(bound)
        if number is not None:
            floats, compare = self._as_floats(), BOUNDS[name]
            return self._settled(
                compare(floats, float(number)), floats == float(number), lambda one: bool(compare(one, number))
            )
        if self._numeric:
            return np.zeros(len(self._distinct), np.bool_)
        return _mask(TEXT_BOUNDS[name](self._distinct, bound))

    def _settled(self, passing: Mask, near: Mask, test: Callable[[Decimal], bool]) -> Mask:
        """The same, with the exact test where a float64 equals the asked one: rounding may hide a difference there."""
        places = np.flatnonzero(near)
        texts = self._distinct.take(pa.array(places)).to_pylist()
        passing[places] = [(number := number_of(text)) is not None and test(number) for text in texts]
        return passing

    def _as_floats(self) -> NDArray[np.float64]:
        """The distinct values rounded to float64, without -0.0; NaN, which no comparison holds of, is no number."""
        if self._floats is None:
            numeric = pc.match_substring_regex(self._distinct, f"^{NUMBER}$")
            floats = pc.cast(pc.if_else(numeric, self._distinct, "nan"), pa.float64())
            self._floats = floats.to_numpy(zero_copy_only=False) + 0.0
        return self._floats


# A key, and whether the column holds its numbers rather than its texts.
_Name: TypeAlias = tuple[str, bool]


def _names(key: str) -> tuple[_Name, _Name]:
    return (key, False), (key, True)


def _mask(array: pa.Array) -> Mask:
    """A copy that may be written to."""
    return np.array(array.to_numpy(zero_copy_only=False), np.bool_)


def _parse(metadata: pa.ChunkedArray) -> tuple[dict[_Name, _Column], dict[str, NDArray[np.int32]]]:
    """The columns, and by key the rows that have a list or an object."""
    nested: defaultdict[str, list[int]] = defaultdict(list)
    rows: dict[_Name, list[NDArray[np.int32]]] = {}
    values: dict[_Name, list[pa.Array]] = {}
    for texts, numbers in _parse_blocks(metadata, nested):
        for found, numeric in ((texts, False), (numbers, True)):
            for key, (places, kept) in found.items():
                rows.setdefault((key, numeric), []).append(np.asarray(places, dtype=np.int32))
                values.setdefault((key, numeric), []).append(_to_strings(kept))
    columns = {
        name: _Column(np.concatenate(rows[name]), pa.chunked_array(values[name]), numeric=name[1]) for name in rows
    }
    return columns, {key: np.array(places, np.int32) for key, places in nested.items()}


_Found: TypeAlias = defaultdict[str, tuple[list[int], list[Any]]]  # by key: row numbers and values


def _parse_blocks(metadata: pa.ChunkedArray, nested: defaultdict[str, list[int]]) -> Iterator[tuple[_Found, _Found]]:
    """For each block of rows, the texts (str) and the numbers (bytes) of each key in it.

    The rows that have a list or an object are added to `nested`, by key.
    """
    for start in range(0, len(metadata), BLOCK_ROWS):
        blocks = metadata.slice(start, BLOCK_ROWS).to_pylist()
        filled = [row for row, text in enumerate(blocks) if text]
        texts: _Found = defaultdict(lambda: ([], []))
        numbers: _Found = defaultdict(lambda: ([], []))
        for row, entries in zip(filled, _parse_objects(blocks, filled, start), strict=True):
            for key, value in entries.items():
                if isinstance(value, bool):
                    value = "true" if value else "false"  # noqa: PLW2901
                if isinstance(value, str):
                    places, kept = texts[key]
                elif isinstance(value, bytes):
                    places, kept = numbers[key]
                else:
                    if value is not None:
                        nested[key].append(start + row)
                    continue
                places.append(start + row)
                kept.append(value)
        yield texts, numbers


# Numbers stay the digits that they are, as bytes, which tells them from texts.
_read_json = json.JSONDecoder(parse_int=str.encode, parse_float=str.encode, parse_constant=str).decode


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


def _to_strings(texts: list[Any]) -> pa.Array:
    try:
        return pa.array(texts, pa.large_string())
    except UnicodeEncodeError:  # JSON's escapes can name lone surrogates, which no request can ask for
        return pa.array([text.encode(errors="replace").decode() for text in texts], pa.large_string())
