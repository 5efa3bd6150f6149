from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from training.questions import Question, load_questions, parse_line, without_test_questions

LINES = [
    ("who wrote it\t['A. Author', \"O'Neil\"]", Question("who wrote it", ("A. Author", "O'Neil"))),
    ('which?\t"[\'Say ""Hi""\', \'x\']"', Question("which?", ('Say "Hi"', "x"))),
    ('"who said ""no""?"\t[\'He\']', Question('who said "no"?', ("He",))),
    ('"""who said """"no""""?"""\t[\'He\']', Question('who said "no"?', ("He",))),
    (json.dumps({"question": "q", "answer": ["a", "b"]}), Question("q", ("a", "b"))),
]


@pytest.mark.parametrize(("line", "expected"), LINES)
def test_every_kind_of_line(line: str, expected: Question) -> None:
    assert parse_line(line) == expected


def test_a_set_in_the_jar(tmp_path: Path) -> None:
    jar = tmp_path / "anserini.jar"
    with zipfile.ZipFile(jar, "w") as archive:
        archive.writestr("topics-and-qrels/topics.dpr.nq.dev.txt", "\r\n".join(line for line, _ in LINES) + "\r\n")
    assert load_questions(jar, "nq.dev") == [question for _, question in LINES]


def test_no_test_question_is_trained_on() -> None:
    training = [Question("Who wrote the Iliad?", ("Homer",)), Question("who wrote Emma", ("Jane Austen",))]
    test = [Question("who wrote Iliad", ("Homer",))]
    assert without_test_questions(training, test) == training[1:]
