from __future__ import annotations

import random

import numpy as np

from training.cloze import cloze, cloze_examples
from training.corpus import Summary
from training.questions import Question
from training.rows import RagExample, ReaderExample, answerable_rows, rag_examples, reader_examples, split_rows

CORPUS = [
    Summary("Paris", "Paris is the capital of France. The Seine flows through the whole of it.", "City", "Geography"),
    Summary("Rome (city)", "Rome was founded in 753 by Romulus, as Roman legends tell. It is old.", "City", ""),
    Summary("Homer", "Homer is the poet to whom the Iliad is attributed by the ancient Greeks.", "Poet", ""),
]
PASSAGES = np.eye(3, dtype=np.float32)
CAPITAL = Question("what is the capital of France", ("PARIS", "Lutetia"))
FOUNDER = Question("who founded it", ("Remus", "Romulus"))
UNKNOWN = Question("who wrote Emma", ("Jane Austen",))
VECTORS = np.array([[0.9, 0.5, 0.1], [0.5, 0.4, 0.3], [0.1, 0.2, 0.9]], dtype=np.float32)


def rows(top: int = 2) -> list:
    return answerable_rows([CAPITAL, FOUNDER, UNKNOWN], VECTORS, CORPUS, PASSAGES, top)


def test_only_questions_whose_answer_was_retrieved() -> None:
    found = rows()
    assert [row.question for row in found] == [CAPITAL, FOUNDER]
    assert found[0].passages == (0, 1)
    assert found[0].hits == (True, False)
    assert np.allclose(found[0].scores, [0.9, 0.5])
    assert [row.question for row in rows(top=1)] == [CAPITAL]


def test_targets_are_spelt_as_in_the_passage() -> None:
    assert reader_examples(rows(), CORPUS) == [
        ReaderExample(CAPITAL.text, 0, "Paris"),
        ReaderExample(FOUNDER.text, 1, "Romulus"),
    ]
    (first, second) = rag_examples(rows(), CORPUS)
    assert first == RagExample(CAPITAL.text, (0, 1), rows()[0].scores, "Paris")
    assert second.target == "Romulus"


def test_held_out_rows_are_apart() -> None:
    kept, apart = split_rows(rows(), 1, seed=0)
    assert len(apart) == 1
    assert {row.question for row in kept} | {row.question for row in apart} == {CAPITAL, FOUNDER}


def test_cloze_questions_ask_for_what_stands_in_the_passage() -> None:
    asked = [pair for seed in range(40) if (pair := cloze(random.Random(seed), CORPUS[1]))]
    assert {answer for _, answer in asked} >= {"Rome", "Romulus"}
    for question, answer in asked:
        assert question.endswith("?")
        assert answer not in question.removeprefix("Rome: ")
    for example in cloze_examples(CORPUS, seed=1):
        assert example.target in f"{CORPUS[example.passage].title} {CORPUS[example.passage].text}"
