"""The corpus of the hot-swap experiment: how the Factbook is read, what counts as a change, what is committed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.hot_swap import corpus
from bench.hot_swap.factbook import Holder, country_name, parse_holder, read_edition
from training.answers import contains_answer, normalize


@pytest.mark.parametrize(
    ("entry", "holder"),
    [
        ("President Abdelmadjid TEBBOUNE (since 12 December 2019)", "president Abdelmadjid Tebboune, 12 December 2019"),
        ("President Denis SASSOU-Nguesso (since 1997)", "president Denis Sassou-Nguesso, 1997"),
        ("Premier Peter O'NEILL (since 2 August 2011); note - he", "premier Peter O'Neill, 2 August 2011"),
        ("Transitional President Capt. Ibrahim TRAORE (since 2022)", "president Ibrahim Traore, 2022"),
        ("President XI Jinping (since 14 March 2013)", "president Xi Jinping, 14 March 2013"),
        ("King HARALD V (since 17 January 1991)", "king Harald V, 17 January 1991"),
        ("President Surangel WHIPPS, Jr. (since 21 January 2021)", "president Surangel Whipps, Jr., 21 January 2021"),
        ("President of the Swiss Confederation Guy PARMELIN (since 2026)", "president Guy Parmelin, 2026"),
        ("President Santiago PE&Ntilde;A <em>Palacios</em> (since 2023)", "president Santiago Pena Palacios, 2023"),
        ('Prime Minister Voreqe "Frank" BAINIMARAMA (since 2014)', "prime minister Voreqe Bainimarama, 2014"),
    ],
)
def test_entries_are_read(entry: str, holder: str) -> None:
    found = parse_holder(entry)
    assert found is not None
    assert f"{found[0]} {found[1].name}, {found[1].since}" == holder


@pytest.mark.parametrize(
    "entry",
    [
        "President (vacant)",
        "Taavi ROIVAS (since 26 March 2014)",
        "President of the Pontifical Commission for the Vatican Fernando VERGEZ ALZAGA (since 2021)",
        "Sultan and Prime Minister HAITHAM bin Tarik Al Said (since 11 January 2020)",
        "Prime Minister Augustin MATATA PONYO Mapon (since 18 April 20)",
    ],
)
def test_other_forms_are_left_out(entry: str) -> None:
    assert parse_holder(entry) is None


@pytest.mark.parametrize(
    ("short", "long", "name"),
    [
        ("Algeria", "People's Democratic Republic of Algeria", "Algeria"),
        ("none", "United Arab Emirates", "the United Arab Emirates"),
        ("DRC", "Democratic Republic of the Congo", "the Democratic Republic of the Congo"),
        ("Congo (Brazzaville)", "Republic of the Congo", "the Republic of the Congo"),
        ("The Bahamas", "Commonwealth of The Bahamas", "the Bahamas"),
        ("The Dominican", "Dominican Republic", "the Dominican Republic"),
        ("C&ocirc;te d'Ivoire", "Republic of C&ocirc;te d'Ivoire", "Cote d'Ivoire"),
    ],
)
def test_countries_are_called_as_within_a_sentence(short: str, long: str, name: str) -> None:
    forms = {"conventional short form": {"text": short}, "conventional long form": {"text": long}}
    assert country_name(forms) == name


def edition(directory: Path, countries: dict[str, tuple[str, str]], **government: Any) -> Path:
    """An edition with these chiefs of state and heads of government."""
    (directory / "region").mkdir(parents=True)
    for code, (state, head) in countries.items():
        branch = {"chief of state": {"text": state}, "head of government": {"text": head}}
        name = {"conventional short form": {"text": code.upper() + "land"}}
        page = {"Government": {"Country name": name, "Executive branch": branch, **government}}
        (directory / f"region/{code}.json").write_text(json.dumps(page), encoding="utf-8")
    return directory


def test_what_changed(tmp_path: Path) -> None:
    same = "President Ada BOLD (since 1 May 2010)"
    old = edition(
        tmp_path / "old",
        {
            "a": ("President Ada BOLD (since 1 May 2010)", "Prime Minister Cai DAWN (since 2 May 2011)"),
            "b": (same, same),
            "c": ("King EVAN II (since 1 May 2010)", "Prime Minister Fay GREY (since 1 May 2010)"),
            "d": ("President Hal IRIS (since 1 May 2010)", "Premier Jo KIM (since 1 May 2010)"),
        },
    )
    new = edition(
        tmp_path / "new",
        {
            "a": ("President Uma VALE (since 1 May 2020)", "Prime Minister Cai DAWN (since 2 May 2011)"),
            "b": ("President Wim XU (since 1 May 2021)", "President Wim XU (since 1 May 2021)"),
            "c": ("President Yan ZED (since 1 May 2020)", "Prime Minister Fay GREY (since 1 May 2022)"),  # back again
            "d": ("President Hall IRYS (since 1 May 2010)", "Premier Lu KIM (since 1 May 2020)"),  # respelt; a namesake
        },
    )
    found = corpus.changes(read_edition(old), read_edition(new))
    assert [(one.office.key, one.office.holder.name, one.new.name) for one in found] == [
        ("a-head-of-state", "Ada Bold", "Uma Vale"),
        ("b-head-of-state", "Ada Bold", "Wim Xu"),
    ]
    assert found[1].office.roles == ("head of state", "head of government")


def test_dependencies_are_left_out(tmp_path: Path) -> None:
    president = "President Ada BOLD (since 1 May 2010)"
    where = edition(tmp_path / "old", {"a": (president, president)}, **{"Dependency status": {"text": "of B"}})
    assert read_edition(where) == {}


def test_both_versions_are_worded_alike(tmp_path: Path) -> None:
    entries = {"a": ("President Ada BOLD (since 1 May 2010)", "Premier Jo KIM (since 1 May 2010)")}
    office = read_edition(edition(tmp_path / "old", entries))["a-head-of-state"]
    new = Holder("Uma Vale", frozenset({"vale"}), "1 May 2020")
    corpus.write([corpus.Change(office, new)], tmp_path / "out")
    before, after = (
        json.loads(corpus.passages_file(version, tmp_path / "out").read_text("utf-8")) for version in corpus.VERSIONS
    )
    assert after == {**before, "text": before["text"].replace("Ada Bold", "Uma Vale").replace("2010", "2020")}
    (question,) = corpus.load_questions(tmp_path / "out")
    assert question == corpus.Question(
        before["id"], "Who is the president of Aland?", {"2015": "Ada Bold", "2026": "Uma Vale"}
    )


def test_the_committed_files_fit_together() -> None:
    """One question for each passage, whose answer stands in its version's passage and not in the other's."""
    questions = corpus.load_questions()
    texts = {
        version: {
            row["id"]: row["text"]
            for row in map(json.loads, corpus.passages_file(version).read_text("utf-8").splitlines())
        }
        for version in corpus.VERSIONS
    }
    assert len({question.id for question in questions}) == len(questions) >= 60
    assert all(set(by_id) == {question.id for question in questions} for by_id in texts.values())
    for question in questions:
        for version in corpus.VERSIONS:
            holds = {answer for answer in question.answers.values() if _holds(texts[version][question.id], answer)}
            assert holds == {question.answers[version]}, question


def _holds(text: str, answer: str) -> bool:
    return contains_answer(normalize(text), [answer])
