"""Open-domain questions with their answers, as DPR published them (Karpukhin et al., arXiv 2004.04906)."""

from __future__ import annotations

import ast
import csv
import json
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from training.answers import normalize

# Development sets are trained on; test sets are only ever measured.
TRAINING_SETS = ("nq.dev", "trivia.dev", "squad.test")  # SQuAD's open-domain "test" is its development set
TEST_SETS = ("nq.test", "trivia.test", "wq.test")


@dataclass(frozen=True)
class Question:
    """A question and every spelling of its answer."""

    text: str
    answers: tuple[str, ...]


def load_questions(jar: Path, name: str) -> list[Question]:
    """One set, by its name in the Anserini jar, such as nq.test."""
    with zipfile.ZipFile(jar) as archive:
        text = archive.read(f"topics-and-qrels/topics.dpr.{name}.txt").decode("utf-8")
    lines = [line for line in text.replace("\r\n", "\n").split("\n") if line.strip()]
    return [parse_line(line) for line in lines]


def parse_line(line: str) -> Question:
    """A JSON object, or question TAB list of answers, either of them quoted as in CSV when it holds quotes."""
    if line.startswith("{"):
        row = json.loads(line)
        return Question(row["question"], tuple(row["answer"]))
    question, answers = next(csv.reader([line], delimiter="\t", quotechar='"', doublequote=True))
    return Question(_unquote(question.strip()), tuple(ast.literal_eval(answers)))


def _unquote(text: str) -> str:
    """Without the second layer of CSV quotes that some TriviaQA questions carry."""
    inner = text[1:-1]
    if len(text) < 2 or text[0] != '"' or text[-1] != '"' or '"' in inner.replace('""', ""):
        return text
    return inner.replace('""', '"')


def without_test_questions(training: Iterable[Question], test: Iterable[Question]) -> list[Question]:
    """The training questions that no test set holds, compared by their normalized text."""
    held_out = {normalize(question.text) for question in test}
    return [question for question in training if normalize(question.text) not in held_out]
