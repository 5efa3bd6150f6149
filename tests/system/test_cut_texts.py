"""What the services do not read to its end is counted, named and part of the reply."""

from __future__ import annotations

import re

import pytest
from transformers import AutoTokenizer

from ragserve.v1 import generator_pb2, orchestrator_pb2
from tests.system.cases import FAMILIES
from tests.system.harness import Launcher, Stack, scrape

LONG = "the old city lies on a great river and a king was born in it " * 30
OPTIONS = orchestrator_pb2.GenerationOptions(max_length=5, max_context_tokens=60)
CUT = re.compile(r"The generator read only the first (\d+) of (\d+) tokens of (.*)\.")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_passage_that_is_cut_is_named_in_the_answer(family: str, stack: Stack, launcher: Launcher) -> None:
    documents = [
        generator_pb2.Document(title="Short", text="a river", log_prior=-1.0),
        generator_pb2.Document(title="Long", text=LONG, log_prior=0.0),
    ]
    counter = "ragserve_truncated_documents_total"
    before = scrape(stack.generators[family])[counter]
    asked = {"question": "who?", "documents": documents}
    answer = stack.generate(family, orchestrator_pb2.GenerateRequest(**asked, options=OPTIONS))
    scored = stack.stubs[family].Score(
        orchestrator_pb2.RagServiceScoreRequest(**asked, answer="a king", max_context_tokens=60), timeout=60
    )
    tokenizer = AutoTokenizer.from_pretrained(str(launcher.assets.composites[family] / "generator_tokenizer"))
    whole = len(tokenizer("Long / " + LONG, add_special_tokens=False)["input_ids"])
    for response in (answer, scored):
        long, short = response.passages
        assert (long.truncated_tokens > whole - 60, short.truncated_tokens) == (True, 0)
        (found,) = filter(None, map(CUT.match, response.warnings))
        assert found.groups() == (str(whole - long.truncated_tokens), str(whole), "documents[1] ('Long')")
    assert scrape(stack.generators[family])[counter] == before + 2


def test_a_question_that_the_vocabulary_lacks_is_told(stack: Stack) -> None:
    lacks = "The generator's vocabulary lacks 6 of the question's 12 characters"
    asked = {"question": "who 谁写了物种起 is?", "documents": [generator_pb2.Document(title="River", text="a river")]}
    for family in FAMILIES:
        answer = stack.generate(family, orchestrator_pb2.GenerateRequest(**asked, options=OPTIONS))
        scored = stack.stubs[family].Score(orchestrator_pb2.RagServiceScoreRequest(**asked, answer="me"), timeout=60)
        for response in (answer, scored):
            assert any(one.startswith(lacks) for one in response.warnings) == (family != "bart"), family


def test_a_retrieved_passage_is_named_by_its_id(stack: Stack) -> None:
    options = orchestrator_pb2.GenerationOptions(max_length=5, max_context_tokens=40)
    request = orchestrator_pb2.GenerateRequest(question="who was born?", n_docs=8, options=options)
    answer = stack.generate(FAMILIES[0], request)
    cut = [one.passage.id for one in answer.passages if one.truncated_tokens]
    named = [found.group(3) for found in map(CUT.match, answer.warnings) if found]
    assert named == [f"passage {name!r}" for name in cut[:5]] != []
    streamed = stack.stubs[FAMILIES[0]].GenerateStream(
        orchestrator_pb2.GenerateStreamRequest(request=request), timeout=60
    )
    assert list(list(streamed)[-1].result.warnings) == list(answer.warnings)


def test_a_question_longer_than_the_encoder_reads_is_told(stack: Stack) -> None:
    counter = "ragserve_truncated_queries_total"
    before = scrape(stack.retriever)[counter]
    question = "who was the king of the river city " * 12
    retrieve = stack.stubs[FAMILIES[0]].Retrieve
    found = retrieve(orchestrator_pb2.RagServiceRetrieveRequest(question=question, n_docs=2), timeout=60)
    (warning,) = found.warnings
    assert re.fullmatch(
        r"The question has \d+ tokens; the query encoder reads \d+ of them, and passages were searched by those\.",
        warning,
    )
    request = orchestrator_pb2.GenerateRequest(question=question, n_docs=2, options={"max_length": 5})
    assert warning in stack.generate(FAMILIES[0], request).warnings
    assert scrape(stack.retriever)[counter] == before + 2
    short = retrieve(orchestrator_pb2.RagServiceRetrieveRequest(question="who?", n_docs=2), timeout=60)
    assert list(short.warnings) == []
