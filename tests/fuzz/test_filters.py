"""Filters that nobody would write, on the command line, in Python and on the wire: only our own errors come out."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ragserve import filters
from ragserve.errors import InvalidInputError, RagserveError
from ragserve.filters import NoneOf, Range
from ragserve.requests import retrieve_request
from ragserve.serving.convert import search_from_proto
from ragserve.v1 import common_pb2
from ragserve_cli.filtering import parse_filters
from retriever_svc.convert import options_from_proto
from retriever_svc.filters import Filter, MetadataColumns, check_filter
from retriever_svc.kinds import DEFAULT_OPTIONS

SIGNS = ["=", "!=", ">=", ">", "<=", "<", "==", "=>", "=<", "<>", "!", "~=", " = ", "=!"]
PIECES = [
    *SIGNS,
    '"',
    '\\"',
    "\\u0041",
    "\\ud800",
    ",",
    ", ",
    " ",
    "\n",
    "\x00",
    "\x1b[2J",
    "\ud800",
    "\u202e",
    "a",
    "year",
]
NUMBERS = ["7", "007", "-0.0", "1e400", "1e-400", "1e99999999999", "9" * 400, "NaN", "Infinity", "1990.0", "1_000", "٣"]
ROWS = [
    *('{"a": 7}', '{"a": "007", "year": 1990.0}', '{"a": [1, {"a": 1}], "year": null}', "", "{}"),
    *('{"a": true, "\\ud800": "\\udfff"}', '{"a": 1e400, "year": -0.0}', '{"a": 1e-99999999999, "year": NaN}'),
    json.dumps({"a": 10**400, "year": "2020-01-01", "": ""}),
]
COLUMNS = MetadataColumns(pa.array(ROWS, pa.string()))

TEXTS = st.text() | st.text(st.characters(codec="utf-8")) | st.sampled_from(NUMBERS)
OPTIONS = st.lists(st.sampled_from(PIECES) | st.sampled_from(NUMBERS) | st.text(max_size=4), max_size=9).map("".join)
VALUES = (
    *(
        TEXTS,
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.binary(max_size=3),
        st.decimals(),
        st.fractions(),
    ),
    *(st.dates(), st.datetimes(), st.complex_numbers(), st.just(10**5000), st.just(date), st.just(np.array(3))),
    *(st.floats(width=32).map(np.float32), st.integers(-9, 9).map(np.int64), st.just(np.datetime64("2020-01-01"))),
)
VALUE = st.one_of(*VALUES)
BOUND = st.none() | VALUE
TESTS = st.one_of(
    VALUE,
    st.lists(VALUE, max_size=3),
    st.builds(Range, BOUND, BOUND, BOUND, BOUND),
    st.lists(VALUE, max_size=3).map(lambda values: NoneOf(tuple(values))),
    st.dictionaries(st.text(max_size=2), VALUE, max_size=2),
    st.lists(st.lists(VALUE, max_size=2), max_size=2),
)
CONDITIONS = st.builds(
    filters.Condition,
    TEXTS,
    **dict.fromkeys(("equals", "at_least", "above", "at_most", "below"), st.none() | TEXTS),
    **dict.fromkeys(("any_of", "none_of"), st.none() | st.lists(TEXTS, max_size=3).map(tuple)),
)
WANTED = st.one_of(
    st.dictionaries(TEXTS | st.integers() | st.none(), TESTS, max_size=3),
    st.lists(CONDITIONS | VALUE, max_size=3),
    VALUE,
)
MESSAGES = st.builds(
    lambda conditions, unknown: common_pb2.SearchOptions(filter=conditions).SerializeToString() + unknown,
    st.lists(
        st.builds(
            lambda key, test: common_pb2.Condition(key=key, **test),
            st.text(st.characters(codec="utf-8"), max_size=4),
            st.one_of(
                st.just({}),
                st.builds(lambda text: {"equals": text}, st.sampled_from(NUMBERS)),
                st.builds(
                    lambda name, values: {name: common_pb2.TextList(values=values)},
                    st.sampled_from(["any_of", "none_of"]),
                    st.lists(st.sampled_from(NUMBERS) | st.text(st.characters(codec="utf-8")), max_size=3),
                ),
                st.builds(
                    lambda bounds: {"range": common_pb2.Range(**bounds)},
                    st.dictionaries(
                        st.sampled_from(["at_least", "above", "at_most", "below"]), st.sampled_from(NUMBERS)
                    ),
                ),
            ),
        ),
        max_size=3,
    ),
    st.just(b"") | st.binary(max_size=6),
)


def run_through(message: bytes) -> None:
    """From the wire to the rows: as orchestrator and retriever read it."""
    request = common_pb2.SearchOptions.FromString(message)
    search_from_proto(request)
    wanted = options_from_proto(request, DEFAULT_OPTIONS).filter
    check_filter(wanted)
    mask = COLUMNS.mask(wanted)
    assert mask.shape == (len(ROWS),)
    assert mask.dtype == np.bool_
    alone = [COLUMNS.mask(Filter((condition,))) for condition in wanted.conditions]
    assert (mask == np.logical_and.reduce([np.ones(len(ROWS), np.bool_), *alone])).all()


def command_line(texts: list[str]) -> None:
    refused = None
    try:
        found = parse_filters(texts)
    except InvalidInputError as error:
        found, refused = None, error
    if refused is not None:
        assert refused.field == "--filter"
        assert any(repr(text) in refused.message for text in texts)
    if found:
        assert all(condition.key for condition in found)
        run_through(retrieve_request("q", {"filter": found}).search.SerializeToString())


def python(wanted: Any) -> None:
    run_through(retrieve_request("q", {"filter": wanted}).search.SerializeToString())


TARGETS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any], None]]] = {
    "command line": (st.lists(OPTIONS, min_size=1, max_size=3), command_line),
    "python": (WANTED, python),
    "wire": (MESSAGES, run_through),
}


def fuzz(target: str, inputs: int) -> None:
    strategy, run = TARGETS[target]

    @settings(max_examples=inputs, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def one(value: Any) -> None:
        with suppress(RagserveError, DecodeError):
            run(value)

    one()


@pytest.mark.parametrize("target", TARGETS)
def test_only_our_own_errors_come_out(target: str) -> None:
    fuzz(target, 150)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("target", TARGETS)
def test_only_our_own_errors_come_out_of_many(target: str) -> None:
    fuzz(target, 6_000)


KEY = st.text(st.characters(codec="utf-8"), min_size=1)
WRITTEN = st.lists(st.text(st.characters(codec="utf-8")), min_size=1, max_size=3, unique=True)


@settings(max_examples=200, deadline=None, database=None)
@given(KEY, st.sampled_from(["=", "!=", " = "]), WRITTEN)
def test_what_is_quoted_is_read_as_it_is(key: str, sign: str, values: list[str]) -> None:
    text = json.dumps(key, ensure_ascii=False) + sign + ",".join(json.dumps(value) for value in values)
    if sign == "!=":
        expected = filters.Condition(key, none_of=tuple(values))
    elif len(values) == 1:
        expected = filters.Condition(key, equals=values[0])
    else:
        expected = filters.Condition(key, any_of=tuple(values))
    assert parse_filters([text]) == (expected,)
