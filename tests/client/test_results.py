from __future__ import annotations

import json
import subprocess
import sys

import pytest

import ragserve
from ragserve import responses
from ragserve.errors import InternalError
from ragserve.v1 import orchestrator_pb2
from tests.client import rag


def test_answers_as_json() -> None:
    plain = responses.answer(rag.answer()).to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert plain["answer"] == "Darwin"
    assert plain["hypotheses"][1] == {"text": "Wallace", "log_prob": -1.5, "score": -0.75, "token_ids": [6, 2]}
    assert plain["passages"][1] == {
        "id": "d2",
        "title": "Wallace",
        "text": "He too.",
        "score": 2.0,
        "prior": 0.25,
        "posterior": 0.1,
    }
    assert plain["passages"][0]["metadata"] == {"year": 1859}
    assert plain["token_posteriors"] == [[0.75, 0.25], [0.5, 0.5]]
    assert plain["token_pieces"] == ["Darwin", "</s>"]
    assert plain["timings_seconds"] == {"search": 0.5, "decode_step": 1.5}
    assert (plain["knowledge_version"], plain["warnings"]) == (7, ["a warning"])


def test_other_results_as_json() -> None:
    tokens = ragserve.TokensEvent((5,), "Darwin")
    assert tokens.to_dict() == {"token_ids": [5], "text": "Darwin"}
    passage = ragserve.Passage("d", "t", "x", 1.0, 1.0, None)
    found = [passage.to_dict()]
    assert "posterior" not in found[0]
    assert ragserve.PassagesEvent((passage,), 7).to_dict() == {"passages": found, "knowledge_version": 7}
    retrieval = ragserve.Retrieval((passage,), 7, {"search": 0.5})
    assert retrieval.to_dict()["timings_seconds"] == {"search": 0.5}
    assert retrieval.to_dict()["passages"] == found
    score = ragserve.AnswerScore(-1.0, (5,), (-1.0,), (passage,), 7, {})
    assert score.to_dict()["token_log_probs"] == [-1.0]


MADE_UP = "No passage contains this answer: the model may have made it up."


@pytest.mark.parametrize(
    ("answer", "text", "supported"),
    [
        ("Yuri", "The office in Turku is led by Anna.", False),
        ("an Anna", "The office in Turku is led by ANNA.", True),
        ("Ann", "The office in Turku is led by Anna.", False),
        ("J.R.R. Tolkien", "by J. R. R. Tolkien in 1937", True),
        ("US", "the U.S. army", True),
        ("40", "a 40-year-old man", True),
        ("Bogota", "It is Bogotá.", True),
        ("東京", "首都は東京です", True),
        ("Yes.", "The office in Turku is led by Anna.", True),
        ("", "anything", True),
        ("It is led by somebody whom the passages do not say anything about.", "anything", True),
    ],
)
def test_a_short_answer_that_no_passage_contains_has_a_note(answer: str, text: str, *, supported: bool) -> None:
    response = rag.answer()
    response.hypotheses[0].text = answer
    response.hypotheses[0].log_prob = -0.006
    for message in response.passages:
        message.passage.text = text
    found = responses.answer(response)
    plain = found.to_dict()
    assert found.notes == (() if supported else (MADE_UP,))
    assert plain["notes"] == list(found.notes)
    assert plain["probability"] == pytest.approx(0.994, abs=1e-3)


def test_the_passages_with_the_answer_are_named() -> None:
    found = responses.answer(rag.answer())
    assert found.passages_with_answer == (0,)
    assert found.to_dict()["passages_with_answer"] == [0]


def test_an_improbable_answer_has_a_note() -> None:
    response = rag.answer()
    response.hypotheses[0].log_prob = -3.0
    assert "below 10%" in responses.answer(response).notes[-1]


@pytest.mark.parametrize("text", ["{", "[1]", "7"])
def test_metadata_that_is_no_object_is_left_out(text: str) -> None:
    (message, _) = rag.passages()
    message.passage.metadata_json = text
    assert responses.passages([message])[0].metadata == {}


def test_events_without_content() -> None:
    with pytest.raises(InternalError, match="without content"):
        responses.event(orchestrator_pb2.GenerateStreamResponse())


def test_everything_exported_is_there() -> None:
    names = set(ragserve.__all__) - {"__version__"}
    assert {name: getattr(ragserve, name).__name__ for name in names} == {name: name for name in names}
    assert isinstance(ragserve.__version__, str)
    assert dir(ragserve) == ragserve.__all__
    with pytest.raises(AttributeError, match="Clint"):
        ragserve.Clint  # noqa: B018


def test_importing_ragserve_loads_no_transport() -> None:
    program = "import sys, ragserve, ragserve.results, ragserve.serving.metrics; print('grpc' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
