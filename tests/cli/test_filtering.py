"""Filters as the command line says them."""

from __future__ import annotations

import pytest

from ragserve.errors import InvalidInputError
from ragserve.filters import Range
from ragserve_cli.filtering import parse_filters


def test_every_sign() -> None:
    texts = [
        "lang=en",
        "kind = a,b",
        "year>=1990",
        "year<2000",
        "day>2020-01-01",
        "day<=2021-01-01",
        "empty=",
        "eq=a=b",
    ]
    assert parse_filters(texts) == {
        "lang": "en",
        "kind": ["a", "b"],
        "year": Range(at_least="1990", below="2000"),
        "day": Range(above="2020-01-01", at_most="2021-01-01"),
        "empty": "",
        "eq": "a=b",
    }
    assert parse_filters(None) is parse_filters([]) is None


@pytest.mark.parametrize(
    "texts", [["lang"], ["=en"], [">=3"], ["a=1", "a=2"], ["a>1", "a=2"], ["a>1", "a>2"], ["a=1", "a<2"]]
)
def test_what_is_no_condition_or_does_not_go_together(texts: list[str]) -> None:
    with pytest.raises(InvalidInputError) as caught:
        parse_filters(texts)
    assert caught.value.field == "--filter"
    assert repr(texts[-1]) in caught.value.message
