"""The range checker: which numbers pass, and what it says of the others."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ragserve.arguments import check_range, record
from ragserve.errors import InvalidInputError
from ragserve.knowledge import NewPassage
from ragserve.options import Document


@pytest.mark.parametrize(
    ("value", "bounds"),
    [
        (1, {"least": 1, "most": 3}),
        (3, {"least": 1, "most": 3}),
        (0, {"least": 0}),
        (-(10**400), {"most": 0}),
        (5e-324, {"above": 0}),
        (-1.5, {}),
    ],
)
def test_numbers_within_bounds(value: float, bounds: dict[str, Any]) -> None:
    check_range("n", value, **bounds)


@pytest.mark.parametrize(
    ("value", "bounds", "said"),
    [
        (0, {"least": 1, "most": 3}, "n is 0; it must be between 1 and 3"),
        (4, {"least": 1, "most": 3, "why": "there are 3"}, "n is 4; it must be between 1 and 3: there are 3"),
        (2, {"least": 1, "most": 1}, "n is 2; it must be 1"),
        (-1, {"least": 0}, "n is -1; it must be at least 0"),
        (5, {"most": 4}, "n is 5; it must be at most 4"),
        (0.0, {"above": 0, "most": 1}, "n is 0; it must be above 0 and at most 1"),
        (0.1 + 0.2, {"most": 0.25}, "n is 0.3; it must be at most 0.25"),
        (1 + 1e-9, {"most": 1}, "n is 1.000000001; it must be at most 1"),
        (math.nan, {}, "n is nan; it must be a finite number"),
        (math.inf, {"above": 0}, "n is inf; it must be above 0"),
        (10**400, {"most": 4}, None),
    ],
)
def test_numbers_out_of_bounds(value: float, bounds: dict[str, Any], said: str | None) -> None:
    with pytest.raises(InvalidInputError) as caught:
        check_range("n", value, **bounds)
    assert caught.value.field == "n"
    if said:
        assert caught.value.message == said
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    ("name", "cls", "key", "said"),
    [
        ("documents[0]", Document, "contents", "log_prior, text, title"),
        ("passages[2]", NewPassage, "year", "id, metadata, text, title, vector. Put further values into metadata"),
    ],
)
def test_an_unknown_key_of_a_mapping_is_named(name: str, cls: type, key: str, said: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        record(name, name, cls, {"text": "a", key: "b"})
    assert str(caught.value) == f"{name}: unknown key {key!r}; it may have {said}"
