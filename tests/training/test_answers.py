from __future__ import annotations

import pytest

from training.answers import contains_answer, exact_match, normalize, surface_form


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Beatles!", "beatles"),
        ("an apple, a day", "apple day"),
        ("U.S.A.", "usa"),
        ("Theatre", "theatre"),
        ("a", ""),
        ("Café", normalize("Cafe\u0301")),
    ],
)
def test_normalize(text: str, expected: str) -> None:
    assert normalize(text) == expected


def test_exact_match_is_over_all_aliases() -> None:
    assert exact_match("the Eiffel Tower.", ["Tour Eiffel", "Eiffel tower"])
    assert not exact_match("Eiffel", ["Tour Eiffel", "Eiffel tower"])


def test_answers_are_found_as_whole_words() -> None:
    text = normalize("A partial list of New York's parks")
    assert contains_answer(text, ["New Yorks"])
    assert not contains_answer(text, ["art"])
    assert not contains_answer(text, ["the", "a"])


def test_surface_form_is_spelt_as_in_the_text() -> None:
    assert surface_form(["eiffel TOWER"], ["Paris", "The Eiffel Tower is in Paris."]) == "Eiffel Tower"
    assert surface_form(["art"], ["A partial list"]) is None
    assert surface_form(["a", '"', "list"], ["A partial list"]) == "list"


def test_surface_form_is_the_fullest_spelling_there() -> None:
    answers = ["Tolkien", "J. R. R. Tolkien", "John Ronald Reuel Tolkien"]
    assert surface_form(answers, ["Tolkien", "A novel by J. R. R. Tolkien."]) == "J. R. R. Tolkien"
