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
    passage = ragserve.Passage("d", "t", "x", 1.0, 1.0, 0.0)
    found = [passage.to_dict()]
    assert ragserve.PassagesEvent((passage,), 7).to_dict() == {"passages": found, "knowledge_version": 7}
    retrieval = ragserve.Retrieval((passage,), 7, {"search": 0.5})
    assert retrieval.to_dict()["timings_seconds"] == {"search": 0.5}
    score = ragserve.AnswerScore(-1.0, (5,), (-1.0,), (passage,), 7, {})
    assert score.to_dict()["token_log_probs"] == [-1.0]


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
