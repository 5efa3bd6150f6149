"""Filters as Python says them, and as they reach the wire."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from ragserve import filters
from ragserve.errors import InvalidInputError
from ragserve.filters import Condition, Range, SearchOptions, between, conditions, none_of
from ragserve.requests import generate_request, retrieve_request, score_request
from ragserve.serving.convert import search_from_proto, search_to_proto
from ragserve.v1 import common_pb2


def test_every_kind_of_value() -> None:
    wanted: filters.Filter = {
        "lang": "en",
        "kind": ["article", "list"],
        "year": between(1990, 2000),
        "day": Range(above=date(2020, 1, 31), below=datetime(2021, 7, 1, 12)),
        "free": True,
        "score": Range(at_least=0.5),
        "tags": {7},
        "source": none_of("web", 3),
        "count": np.int64(2**53 + 1),
        "part": [np.float64(1990.0), np.float32(0.5), np.bool_(True), Decimal("1.50")],
        "n": np.array([1, 2]),
    }
    assert conditions(wanted) == (
        Condition("lang", equals="en"),
        Condition("kind", any_of=("article", "list")),
        Condition("year", at_least="1990", at_most="2000"),
        Condition("day", above="2020-01-31", below="2021-07-01T12:00:00"),
        Condition("free", equals="true"),
        Condition("score", at_least="0.5"),
        Condition("tags", any_of=("7",)),
        Condition("source", none_of=("web", "3")),
        Condition("count", equals="9007199254740993"),
        Condition("part", any_of=("1990.0", "0.5", "true", "1.50")),
        Condition("n", any_of=("1", "2")),
    )
    listed = [Condition("year", at_least="1990"), Condition("year", none_of=("1995",))]
    assert conditions(listed) == tuple(listed)
    assert conditions(None) == conditions({}) == ()


@pytest.mark.parametrize(
    "value",
    [
        *(None, float("nan"), float("inf"), b"en", {"a": 1}, [None], Range(at_least=float("nan"))),
        *(Decimal("nan"), np.float32("inf"), np.datetime64("2020-01-01"), none_of(None), 1j),  # type: ignore[arg-type]
    ],
)
def test_values_that_metadata_cannot_have(value: Any) -> None:
    with pytest.raises(InvalidInputError, match="finite number") as caught:
        conditions({"lang": value})
    assert caught.value.field == "filter['lang']"


def test_numbers_that_are_too_long() -> None:
    for value in (10**5000, [Fraction(10**400)]):
        with pytest.raises(InvalidInputError, match="too long") as caught:
            conditions({"n": value})  # type: ignore[dict-item]
        assert caught.value.field == "filter['n']"
    with pytest.raises(InvalidInputError, match="mapping"):
        conditions([10**5000])  # type: ignore[list-item]


@pytest.mark.parametrize("wanted", ["lang=en", ["lang=en"], [Condition("a", equals="b"), "c"], 3, b"x"])
def test_a_filter_that_is_neither_mapping_nor_conditions(wanted: Any) -> None:
    with pytest.raises(InvalidInputError, match="mapping"):
        conditions(wanted)


@pytest.mark.parametrize(
    "condition",
    [
        Condition("a", equals=""),
        Condition("a", any_of=("x", "y")),
        Condition("a", any_of=()),
        Condition("a", none_of=("x", "")),
        Condition("a", at_least="1", below="2"),
        Condition("a", above="1", at_most="2"),
        Condition("a"),  # which the retriever refuses
    ],
)
def test_the_wire_keeps_conditions_as_they_are(condition: Condition) -> None:
    options = SearchOptions((condition,), nprobe=3, ef_search=4, kind="weighted", lexical_weight=0.0)
    assert search_from_proto(search_to_proto(options)) == options


def test_the_options_of_a_search_reach_the_wire() -> None:
    expected = common_pb2.SearchOptions(
        filter=[common_pb2.Condition(key="lang", equals="en")],
        nprobe=2,
        ef_search=3,
        kind=common_pb2.SEARCH_KIND_WEIGHTED,
        lexical_weight=0.25,
    )
    keywords: Any = {
        "filter": {"lang": "en"},
        "nprobe": 2,
        "ef_search": 3,
        "search_kind": "weighted",
        "lexical_weight": 0.25,
    }
    assert generate_request("q", keywords).search == expected
    assert score_request("q", "a", keywords).search == expected
    assert retrieve_request("q", keywords).search == expected
    assert not retrieve_request("q", {"filter": {}, "nprobe": 0}).HasField("search")


@pytest.mark.parametrize(
    ("keywords", "field"),
    [
        ({"nprobe": -1}, "search.nprobe"),
        ({"ef_search": 1.5}, "search.ef_search"),
        ({"search_kind": "words"}, "search.kind"),
        ({"filter": {"\ud800": "x"}}, "filter"),
        ({"filter": {"lang": "\ud800"}}, "filter['lang']"),
        ({"filter": {3: "x"}}, "filter"),
        ({"filter": {b"lang": "x"}}, "filter"),
        ({"search_kind": ""}, "search.kind"),
        ({"search_kind": []}, "search.kind"),
    ],
)
def test_what_protobuf_cannot_hold_names_its_field(keywords: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        retrieve_request("q", keywords)  # type: ignore[arg-type]
    assert caught.value.field == field


def test_unknown_keywords_of_retrieve_are_refused() -> None:
    with pytest.raises(TypeError, match="beams"):
        retrieve_request("q", {"beams": 4})  # type: ignore[typeddict-unknown-key]
