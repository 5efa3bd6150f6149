"""Section 4.5 of the paper on the shipped demo: the pinned version of the knowledge decides who holds an office."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.hot_swap.corpus import VERSIONS, Question, load_questions, passages_file
from bench.hot_swap.experiment import MODES, Asked, ask_all, count
from bench.hot_swap.system import MODEL, System, serving
from retriever_svc.build import build_knowledge_base

QUESTIONS = {"token": 20, "sequence": 6}  # of each mode
MATCHED, MISMATCHED = 0.7, 0.15  # shares; the paper: 0.70 and 0.68 against 0.12 and 0.04
pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]  # the fixtures ask all questions within the first test
OLD, NEW = VERSIONS


@dataclass(frozen=True)
class Swapped:
    """The system after the swap, the numbers of its two versions, and what it answered."""

    system: System
    numbers: Mapping[str, int]
    questions: Sequence[Question]
    asked: Sequence[Asked]


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    """The first ones, so that both offices of a country are among them."""
    return load_questions()[: max(QUESTIONS.values())]


@pytest.fixture(scope="module")
def offices(questions: list[Question], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The passages that these questions are about."""
    directory, wanted = tmp_path_factory.mktemp("offices"), {question.id for question in questions}
    for version in VERSIONS:
        lines = passages_file(version).read_text("utf-8").splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["id"] in wanted]
        passages_file(version, directory).write_text("".join(kept), encoding="utf-8")
    return directory


@pytest.fixture(scope="module")
def swapped(offices: Path, questions: list[Question], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swapped]:
    """Served with the old holders alone (short passages are quick to read), then given the new ones."""
    built = build_knowledge_base(passages_file(OLD, offices), offices / "base", MODEL)
    with serving(tmp_path_factory.mktemp("system"), built.path, threads=1) as system:
        numbers = {OLD: built.version, NEW: system.publish(passages_file(NEW, offices))}
        asked = [one for mode, size in QUESTIONS.items() for one in ask_all(system, numbers, questions[:size], mode)]
        yield Swapped(system, numbers, questions, asked)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pinned", VERSIONS)
def test_the_pinned_version_decides_the_answer(swapped: Swapped, mode: str, pinned: str) -> None:
    (other,) = set(VERSIONS) - {pinned}
    assert count(swapped.asked, mode, pinned, pinned) >= MATCHED * QUESTIONS[mode]
    assert count(swapped.asked, mode, pinned, other) <= MISMATCHED * QUESTIONS[mode]


def test_one_retriever_has_both_versions_loaded(swapped: Swapped) -> None:
    assert swapped.system.loaded_versions() == [swapped.numbers[OLD], swapped.numbers[NEW]]


def test_replies_name_the_pinned_version(swapped: Swapped) -> None:
    assert len(swapped.asked) == 2 * sum(QUESTIONS.values())
    assert all(one.answer.knowledge_version == swapped.numbers[one.pinned] for one in swapped.asked)


def test_who_pins_nothing_gets_the_new_holder(swapped: Swapped) -> None:
    for question in swapped.questions[:2]:
        answer = swapped.system.ask(question.text, 0, "token")
        (pinned,) = [one for one in swapped.asked if (one.mode, one.pinned, one.question) == ("token", NEW, question)]
        assert answer.knowledge_version == swapped.numbers[NEW]
        assert answer.answer == pinned.answer.answer


def test_passages_are_retrieved_as_the_pinned_version_has_them(swapped: Swapped) -> None:
    texts = {
        version: {row["id"]: row["text"] for row in map(json.loads, passages_file(version).read_text().splitlines())}
        for version in VERSIONS
    }
    for one in swapped.asked:
        found = {passage.id: passage.text for passage in one.answer.passages}
        assert one.question.id in found
        assert all(text == texts[one.pinned][id_] for id_, text in found.items())
