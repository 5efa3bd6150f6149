from __future__ import annotations

import json
import operator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ragserve.errors import DataLossError, InvalidInputError
from retriever_svc import filters
from retriever_svc.filters import Condition, Filter, MetadataColumns, check_filter
from retriever_svc.numerals import number_of

ROWS = [
    '{"year": 1990, "lang": "en", "day": "2020-01-31"}',
    "",
    '{"year": "1989.5", "lang": "de", "free": true}',
    '{"year": "later", "lang": null, "tags": ["en"], "free": false}',
    '{"year": 1e3, "lang": "en", "day": "2021-07-01", "free": "true"}',
    "{}",
]


def passing(*conditions: Condition, rows: list[str] = ROWS) -> list[int]:
    wanted = Filter(conditions)
    check_filter(wanted)
    return np.flatnonzero(MetadataColumns(pa.array(rows, pa.string())).mask(wanted)).tolist()


def test_no_condition_lets_everything_pass() -> None:
    assert passing() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("condition", "rows"),
    [
        (Condition("lang", equals="en"), [0, 4]),
        (Condition("year", equals="1990"), [0]),
        (Condition("year", equals="1000"), [4]),  # written as 1e3
        (Condition("year", any_of=("1990.0", "1E+3", "later")), [0, 3, 4]),
        (Condition("year", none_of=("1000", "later")), [0, 1, 2, 5]),  # also those that have none
        (Condition("year", equals="1989.50"), [2]),  # a text that reads as the same number
        (Condition("free", equals="true"), [2, 4]),
        (Condition("lang", equals="null"), []),
        (Condition("tags", equals="en"), []),
        (Condition("unknown", equals=""), []),
        (Condition("lang", any_of=("de", "fr", "en")), [0, 2, 4]),
        (Condition("year", at_least="1000"), [0, 2, 4]),
        (Condition("year", above="1e3", at_most="1990"), [0, 2]),
        (Condition("year", above="1e3", below="1.99e3"), [2]),
        (Condition("year", at_least="k"), [3]),  # not a number: compared as text
        (Condition("day", at_least="2020-01-31", below="2021-01-01"), [0]),
        (Condition("day", above="2020-01-31"), [4]),
        (Condition("day", at_least="2020"), []),  # a number, and no value is one
    ],
)
def test_each_kind_of_test(condition: Condition, rows: list[int]) -> None:
    assert passing(condition) == rows


def test_all_conditions_must_hold() -> None:
    assert passing(Condition("lang", equals="en"), Condition("day", below="2021-01-01")) == [0]
    assert passing(Condition("lang", equals="en"), Condition("lang", equals="de")) == []


def test_chunks_and_blocks_make_no_difference() -> None:
    texts = [json.dumps({"n": n, "even": n % 2 == 0}) if n % 7 else "" for n in range(3 * filters.BLOCK_ROWS + 5)]
    chunked = pa.chunked_array([pa.array(texts[:10]), pa.array(texts[10:2000]), pa.array(texts[2000:])])
    wanted = Filter((Condition("n", at_least="500", below="2900"), Condition("even", equals="true")))
    expected = [500 <= n < 2900 and n % 2 == 0 and n % 7 != 0 for n in range(len(texts))]
    assert MetadataColumns(chunked).mask(wanted).tolist() == expected


def test_no_rows() -> None:
    assert MetadataColumns(pa.array([], pa.string())).mask(Filter((Condition("a", equals="b"),))).tolist() == []


@pytest.mark.parametrize("bad", ["[1]", "3", '{"a"', '{"a": 1}, {"a": 2}', '"text"'])
def test_what_is_no_object_is_named_by_its_row(bad: str) -> None:
    columns = MetadataColumns(pa.array([*ROWS, bad]))
    with pytest.raises(DataLossError, match="row 6 is not a JSON object"):
        columns.load()


def test_lone_surrogates_are_matched_by_nothing_but_presence() -> None:
    rows = ['{"a": "x\\ud800"}', '{"a": "y"}']
    assert passing(Condition("a", equals="y"), rows=rows) == [1]
    assert passing(Condition("a", at_least=""), rows=rows) == [0, 1]


def test_masks_are_kept_read_only_and_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "KEPT_MASKS", 2)
    columns = MetadataColumns(pa.array(ROWS))
    first, second, third = (Filter((Condition("lang", equals=value),)) for value in ("en", "de", "fr"))
    kept = columns.mask(first)
    with pytest.raises(ValueError, match="read-only"):
        kept[0] = False
    columns.mask(second)
    assert columns.mask(first) is kept  # and is now the one asked for last
    assert columns.mask(third).tolist() == [False] * 6
    assert columns.mask(first) is kept
    assert columns.mask(second).tolist() == [False, False, True, False, False, False]
    assert columns.mask(third).tolist() == [False] * 6
    assert columns.mask(first) is not kept


def test_many_threads_get_the_same() -> None:
    columns = MetadataColumns(pa.array(ROWS * 500))
    wanted = [Filter((Condition("lang", equals=value),)) for value in ("en", "de")] * 20
    with ThreadPoolExecutor(8) as pool:
        counts = [int(mask.sum()) for mask in pool.map(columns.mask, wanted)]
    assert counts == [1000, 500] * 20


@pytest.mark.parametrize(
    ("condition", "field"),
    [
        (Condition("", equals="a"), "options.filter[1].key"),
        (Condition("a"), "options.filter[1]"),
        (Condition("a", equals="b", any_of=("b",)), "options.filter[1]"),
        (Condition("a", equals="b", below="c"), "options.filter[1]"),
        (Condition("a", any_of=()), "options.filter[1].any_of"),
        (Condition("a", any_of=("x",) * 1001), "options.filter[1].any_of"),
        (Condition("a", at_least="1", above="2"), "options.filter[1].range.above"),
        (Condition("a", at_most="1", below="2"), "options.filter[1].range.below"),
        (Condition("a", at_least="10", at_most="9"), "options.filter[1].range.at_least"),
        (Condition("a", above="b", below="a"), "options.filter[1].range.above"),
        (Condition("a", at_least="1", below="b"), "options.filter[1].range.below"),
        (Condition("a", above="1", at_most="1.0"), "options.filter[1].range.above"),
        (Condition("a", at_least="2", at_most="10", none_of=("3",)), "options.filter[1]"),
        (Condition("a", none_of=()), "options.filter[1].none_of"),
        (Condition("a", below="\ud800"), "options.filter[1].range.below"),
        (Condition("\ud800", any_of=("a",)), "options.filter[1].key"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused(condition: Condition, field: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        check_filter(Filter((Condition("fine", equals=""), condition)))
    assert raised.value.field == field
    assert raised.value.message.startswith("options.filter[1]")


def test_too_many_conditions_are_refused() -> None:
    check_filter(Filter((Condition("a", equals="b"),) * 32))
    with pytest.raises(InvalidInputError) as raised:
        check_filter(Filter((Condition("a", equals="b"),) * 33))
    assert raised.value.field == "options.filter"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1_0",
        " 1",
        "1 ",
        "1\n",
        "nan",
        "inf",
        "+1",
        ".5",
        "1.",
        "0x1",
        "１",
        "--1",
        "007",
        "-",
        "1e",
        "1e-1000000000",
    ],
)
def test_what_is_no_number(text: str) -> None:
    assert number_of(text) is None
    row = json.dumps({"a": text})
    assert passing(Condition("a", at_least="-1e308", at_most="1e308"), rows=[row]) == []


# One key's values in the rows, and for each condition on it the rows that pass.
NUMBERS_AS_NUMBERS = [
    (
        ["1990.0", "1990", "1.99e3", '"1990"', '"1990.0"', "1990.5"],
        [
            (Condition("n", equals="1990"), [0, 1, 2, 3, 4]),
            (Condition("n", equals="1990.0"), [0, 1, 2, 3, 4]),
            (Condition("n", any_of=("1990", "7")), [0, 1, 2, 3, 4]),
            (Condition("n", at_least="1990", at_most="1990"), [0, 1, 2, 3, 4]),
            (Condition("n", none_of=("1990",)), [5]),
        ],
    ),
    (
        ["-0.0", "0", "0.0", "-0", '"0"', "false", "null", "[0]", '{"0": 0}'],
        [
            (Condition("n", equals="0"), [0, 1, 2, 3, 4]),
            (Condition("n", equals="-0.0"), [0, 1, 2, 3, 4]),
            (Condition("n", at_least="0", at_most="0"), [0, 1, 2, 3, 4]),
            (Condition("n", below="0"), []),
            (Condition("n", none_of=("0",)), [5, 6, 7, 8]),
        ],
    ),
    (  # beyond what float64 tells apart
        ["9007199254740992", "9007199254740993", "9007199254740992.0", "9007199254740992.5", '"9007199254740993.0"'],
        [
            (Condition("n", equals="9007199254740993"), [1, 4]),
            (Condition("n", any_of=("9007199254740992",)), [0, 2]),
            (Condition("n", above="9007199254740992"), [1, 3, 4]),
            (Condition("n", at_most="9007199254740992"), [0, 2]),
        ],
    ),
    (
        ["1e400", "10e399", "-1e400", "1e-400", "0", "1e999999999", '"1e400"', "1e9999999999", "1" + "0" * 400],
        [
            (Condition("n", equals="1e400"), [0, 1, 6, 8]),
            (Condition("n", above="1e400"), [5]),
            (Condition("n", below="0"), [2]),
            (Condition("n", above="0", at_most="1e-400"), [3]),
            (Condition("n", at_least="1e308"), [0, 1, 5, 6, 8]),
        ],
    ),
    (
        ['"007"', "7", '"7"', "7.0", '"7 "'],
        [
            (Condition("n", equals="7"), [1, 2, 3]),
            (Condition("n", equals="007"), [0]),
            (Condition("n", at_least="7", at_most="7"), [1, 2, 3]),
        ],
    ),
    (
        ['"1.10"', '"1.1"', "1.1", '"1.1.0"', '"v1.1"', '" 1.1"'],
        [
            (Condition("n", equals="1.1"), [0, 1, 2]),
            (Condition("n", any_of=("1.10", "v1.1")), [0, 1, 2, 4]),
            (Condition("n", none_of=("1.100",)), [3, 4, 5]),
            (Condition("n", equals=" 1.1"), [5]),
        ],
    ),
    (
        ["true", '"true"', "1", "false", "null"],
        [
            (Condition("n", equals="true"), [0, 1]),
            (Condition("n", equals="1"), [2]),
            (Condition("n", at_least="0"), [2]),
            (Condition("n", none_of=("true", "false")), [2, 4]),
        ],
    ),
    (  # a bound that is a text is compared with texts only
        ["2020", '"2020-05-01"', '"2021"', "3000"],
        [(Condition("n", at_least="2020-01-01"), [1, 2]), (Condition("n", at_least="2020"), [0, 2, 3])],
    ),
]


@pytest.mark.parametrize(("values", "asked"), NUMBERS_AS_NUMBERS)
def test_numbers_are_compared_as_numbers(values: list[str], asked: list[tuple[Condition, list[int]]]) -> None:
    rows = [f'{{"n": {value}}}' for value in values]
    assert {condition: passing(condition, rows=rows) for condition, _ in asked} == dict(asked)


COMPARE = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}


def plain_number(text: str) -> Fraction | None:
    """The value of a text in JSON's grammar, as Python's own JSON reader finds it."""
    try:
        value = json.loads(text, parse_int=Fraction, parse_float=Fraction, parse_constant=lambda _: None)
    except ValueError:
        return None
    return value if isinstance(value, Fraction) and text.strip() == text else None


def plainly_equal(text: str, value: Any) -> bool:
    if isinstance(value, bool):
        return text == json.dumps(value)
    if isinstance(value, int | float):
        return plain_number(text) == Fraction(value if isinstance(value, int) else repr(value))
    if not isinstance(value, str):
        return False
    number = plain_number(text)
    return text == value or (number is not None and plain_number(value) == number)


def plainly_within(compare: Any, bound: str, value: Any) -> bool:
    if isinstance(value, bool):
        value = json.dumps(value)
    number = plain_number(bound)
    if isinstance(value, str) and number is None:
        return bool(compare(value, bound))
    found = plain_number(value) if isinstance(value, str) else plain_number(json.dumps(value))
    return number is not None and found is not None and bool(compare(found, number))


def plainly_holds(condition: Condition, metadata: dict[str, Any]) -> bool:
    value = metadata.get(condition.key)
    if condition.none_of is not None:
        return not any(plainly_equal(text, value) for text in condition.none_of)
    if condition.equals is not None:
        return plainly_equal(condition.equals, value)
    if condition.any_of is not None:
        return any(plainly_equal(text, value) for text in condition.any_of)
    bounds = [(COMPARE[name], getattr(condition, name)) for name in COMPARE if getattr(condition, name) is not None]
    return all(plainly_within(compare, bound, value) for compare, bound in bounds)


KEYS = st.sampled_from("abc")
WORDS = st.sampled_from(
    ["", "a", "ab", "b", "ä", "\U0001f600", "￿", "2020-01-01", "10", "10.0", "9", "-1.5", "1e1", "true", "007", "-0"]
)
LARGE = st.sampled_from([2**53, 2**53 + 1, 10**400, 10**400 + 1, float(2**53), 1e308, 5e-324, -0.0, 0.1 + 0.2])
NUMBERS = st.integers(-12, 12) | st.integers(-3, 3).map(float) | st.floats(-20, 20, allow_nan=False) | LARGE
VALUES = WORDS | NUMBERS | st.booleans() | st.none() | st.lists(WORDS, max_size=2)
METADATA = st.dictionaries(KEYS, VALUES, max_size=3)
BOUND = WORDS | NUMBERS.map(json.dumps)


@st.composite
def conditions(draw: st.DrawFn) -> Condition:
    condition = Condition(draw(KEYS))
    kind = draw(st.sampled_from(["equals", "any_of", "none_of", "range"]))
    if kind == "range":
        names = [draw(st.sampled_from([None, *pair])) for pair in (("at_least", "above"), ("at_most", "below"))]
        given_names = [name for name in names if name] or ["at_most"]
        return replace(condition, **{name: draw(BOUND) for name in given_names})
    value = draw(BOUND) if kind == "equals" else tuple(draw(st.lists(BOUND, min_size=1, max_size=3)))
    return replace(condition, **{kind: value})


@given(st.lists(METADATA | st.none(), max_size=12), st.lists(conditions(), max_size=3))
def test_like_a_plain_evaluator(rows: list[dict[str, Any] | None], asked: list[Condition]) -> None:
    texts = ["" if row is None else json.dumps(row, ensure_ascii=False) for row in rows]
    expected = [all(plainly_holds(condition, row or {}) for condition in asked) for row in rows]
    assert MetadataColumns(pa.array(texts, pa.string())).mask(Filter(tuple(asked))).tolist() == expected
