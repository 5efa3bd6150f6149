"""Every question asked of both versions, judged by the answers of both, and the tables of that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from bench.hot_swap.corpus import VERSIONS, Question
from bench.hot_swap.system import System
from ragserve.results import Answer
from training.answers import exact_match

MODES = {"token": "RAG-Token", "sequence": "RAG-Sequence"}
IN_FLIGHT = 8  # questions asked at the same time


@dataclass(frozen=True)
class Asked:
    """One question, answered from one pinned version of the world."""

    mode: str
    pinned: str
    question: Question
    answer: Answer

    def right(self, version: str) -> bool:
        """Whether the answer is the one of a version of the world (exact match, normalized)."""
        return exact_match(self.answer.answer, [self.question.answers[version]])

    @property
    def found(self) -> bool:
        """Whether the passage on the office is among those retrieved."""
        return self.question.id in {passage.id for passage in self.answer.passages}


def ask_all(system: System, numbers: Mapping[str, int], questions: Sequence[Question], mode: str) -> list[Asked]:
    """Each question of both versions of the world, by their `numbers` in the knowledge base, in turns."""
    jobs = [(pinned, question) for question in questions for pinned in VERSIONS]

    def ask(job: tuple[str, Question]) -> Asked:
        pinned, question = job
        return Asked(mode, pinned, question, system.ask(question.text, numbers[pinned], mode))

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        return list(pool.map(ask, jobs))


def count(asked: Sequence[Asked], mode: str, pinned: str, version: str) -> int:
    """How many questions pinned to one version were answered as a version of the world has it."""
    return sum(one.right(version) for one in asked if (one.mode, one.pinned) == (mode, pinned))


def table(asked: Sequence[Asked]) -> str:
    """For each mode: accuracy by whose answer counts as right (row) and which version was pinned (column)."""
    modes = list(dict.fromkeys(one.mode for one in asked))
    size = len({one.question.id for one in asked})
    heads = [f"{MODES[mode]}, {pinned} pinned" for mode in modes for pinned in VERSIONS]
    lines = [f"| {size} questions | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads)]
    for version in VERSIONS:
        counts = [count(asked, mode, pinned, version) for mode in modes for pinned in VERSIONS]
        cells = [f"{100 * right / size:.0f} % ({right})" for right in counts]
        lines.append(f"| holder of {version} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def misses(asked: Sequence[Asked]) -> str:
    """What was said instead of the pinned version's answer, one a line."""
    wrong = [one for one in asked if not one.right(one.pinned)]
    return "\n".join(
        f"{MODES[one.mode]}, {one.pinned}: {one.question.text} said: {one.answer.answer}; is: "
        f"{one.question.answers[one.pinned]}{'' if one.found else ' (its passage was not retrieved)'}"
        for one in wrong
    )
