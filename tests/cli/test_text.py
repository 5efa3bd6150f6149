"""Excerpts fit the terminal and show the words that matter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from ragserve_cli.text import excerpt, percent


@pytest.mark.parametrize(
    ("text", "cells", "around", "expected"),
    [
        ("a short text", 20, "", "a short text"),
        ("two\nlines  and\tspaces", 40, "", "two lines and spaces"),
        ("a rather long text about many things", 12, "", "a rather lo…"),
        ("東京は日本の首都です", 9, "", "東京は日…"),
        ("the first words do not matter, but Bogotá does, as the capital", 24, "bogotá", "…but Bogotá does, as th…"),
        ("nothing here", 8, "absent", "nothing…"),
    ],
)
def test_examples(text: str, cells: int, around: str, expected: str) -> None:
    assert excerpt(text, cells, around) == expected


@pytest.mark.parametrize(
    ("probability", "expected"),
    [
        (1.0, "100.0%"),
        (0.9432, "94.3%"),
        (0.05, "5.0%"),
        (0.00423, "0.42%"),
        (0.00004, "0.004%"),
        (0.0000426, "0.0043%"),
        (0.000001, "0.0001%"),
        (1e-30, "<0.0001%"),
        (0.0, "0.0%"),
    ],
)
def test_a_probability_is_a_percentage(probability: float, expected: str) -> None:
    assert percent(probability) == expected


@given(st.text(max_size=200), st.integers(2, 100), st.text(max_size=20))
def test_never_wider_than_asked(text: str, cells: int, around: str) -> None:
    assert cell_len(excerpt(text, cells, around)) <= cells
