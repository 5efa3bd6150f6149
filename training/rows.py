"""Questions with the passages that the retriever finds for them: what is trained and measured on."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.answers import contains_answer, normalize, surface_form
from training.corpus import Summary
from training.questions import Question

TOP = 5  # passages retrieved for each question
LONGEST_TARGET = 60  # characters
Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Row:
    """A question whose answer stands in at least one of its top passages.

    `passages` are positions in the corpus, best first; `scores` their inner products; `hits` whether the answer
    stands there.
    """

    question: Question
    passages: tuple[int, ...]
    scores: tuple[float, ...]
    hits: tuple[bool, ...]


@dataclass(frozen=True)
class ReaderExample:
    """One passage and the answer as it is spelt there."""

    question: str
    passage: int
    target: str


@dataclass(frozen=True)
class RagExample:
    """Retrieved passages, their scores, and an answer as spelt in one of them."""

    question: str
    passages: tuple[int, ...]
    scores: tuple[float, ...]
    target: str


def answerable_rows(
    questions: list[Question], vectors: Vectors, corpus: list[Summary], passages: Vectors, top: int = TOP
) -> list[Row]:
    """The questions whose answer stands in a top passage; vectors [n_questions, dim], passages [n_passages, dim]."""
    texts = [normalize(f"{summary.title} {summary.text}") for summary in corpus]
    scores = vectors @ passages.T
    rows = []
    for index, question in enumerate(questions):
        best = np.argsort(-scores[index], kind="stable")[:top]
        hits = tuple(contains_answer(texts[passage], question.answers) for passage in best)
        if any(hits):
            rows.append(Row(question, tuple(map(int, best)), tuple(map(float, scores[index][best])), hits))
    return rows


def reader_examples(rows: list[Row], corpus: list[Summary], per_question: int = 2) -> list[ReaderExample]:
    """The first passages of each row that hold the answer."""
    examples = []
    for row in rows:
        found = [passage for passage, hit in zip(row.passages, row.hits, strict=True) if hit]
        for passage in found[:per_question]:
            target = surface_form(row.question.answers, (corpus[passage].title, corpus[passage].text))
            if target and len(target) < LONGEST_TARGET:
                examples.append(ReaderExample(row.question.text, passage, target))
    return examples


def rag_examples(rows: list[Row], corpus: list[Summary]) -> list[RagExample]:
    """Each row with its passages as retrieved, good and bad ones."""
    examples = []
    for row in rows:
        found = [corpus[passage] for passage, hit in zip(row.passages, row.hits, strict=True) if hit]
        targets = (surface_form(row.question.answers, (summary.title, summary.text)) for summary in found)
        target = next((target for target in targets if target), None)
        if target and len(target) <= LONGEST_TARGET:
            examples.append(RagExample(row.question.text, row.passages, row.scores, target))
    return examples


def split_rows(rows: list[Row], held_out: int, seed: int) -> tuple[list[Row], list[Row]]:
    """The rows to train on and `held_out` others to choose models by."""
    shuffled = rows[:]
    random.Random(seed).shuffle(shuffled)  # noqa: S311
    return shuffled[held_out:], shuffled[:held_out]
