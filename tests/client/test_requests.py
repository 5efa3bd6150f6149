from __future__ import annotations

import math
import typing
from dataclasses import fields
from typing import Any

import pytest

from ragserve import options
from ragserve.errors import InvalidInputError
from ragserve.requests import generate_request, retrieve_request, score_request
from ragserve.v1 import orchestrator_pb2 as pb


def made(**keywords: Any) -> pb.GenerateRequest:
    return generate_request("q", keywords)  # type: ignore[arg-type]


def test_what_is_not_said_stays_unset() -> None:
    request = made()
    assert request == pb.GenerateRequest(question="q")
    assert not request.HasField("n_docs")
    assert not request.options.ListFields()
    assert made(beams=None, sampling=None, bad_words=None, docs=None, documents=None) == request


def test_every_option_reaches_the_wire() -> None:
    chosen = made(
        mode="sequence",
        decoding="fast",
        beams=4,
        num_return_sequences=2,
        max_length=50,
        min_length=2,
        max_new_tokens=20,
        min_new_tokens=1,
        length_penalty=0.5,
        early_stopping="never",
        no_repeat_ngram_size=3,
        bad_words=[[0, 0], (7,)],
        repetition_penalty=1.5,
        sampling=options.Sampling(temperature=0.5, top_k=10, top_p=0.25, seed=2**63),
        question_form="decoded",
        truncation="right",
        max_context_tokens=128,
    ).options
    assert {f.name for f, _ in chosen.ListFields()} == {f.name for f in pb.GenerationOptions.DESCRIPTOR.fields}
    assert (chosen.mode, chosen.decoding, chosen.early_stopping) == (2, pb.DECODING_FAST, pb.EARLY_STOPPING_NEVER)
    assert (chosen.question_form, chosen.truncation) == (pb.QUESTION_FORM_DECODED, 2)
    assert [list(words.token_ids) for words in chosen.bad_words] == [[0, 0], [7]]
    assert (chosen.sampling.temperature, chosen.sampling.seed) == (0.5, 2**63)


def test_everything_else_reaches_the_wire() -> None:
    documents = [options.Document("t", "x", -0.5), options.Document("u", "y")]
    request = made(docs=0, token_posteriors=True, knowledge_version=7, documents=documents)
    assert request.HasField("n_docs")
    assert (request.n_docs, request.token_posteriors, request.knowledge_version) == (0, True, 7)
    assert [(d.title, d.text, d.log_prior) for d in request.documents] == [("t", "x", -0.5), ("u", "y", 0.0)]


@pytest.mark.parametrize(
    "name", ["beams", "num_return_sequences", "max_length", "max_new_tokens", "no_repeat_ngram_size"]
)
def test_zero_is_said(name: str) -> None:
    assert made(**{name: 0}).options.HasField({"beams": "num_beams"}.get(name, name))


def test_values_that_are_wrong_are_left_to_the_service() -> None:
    request = made(beams=1000, length_penalty=-1.0, early_stopping="never", repetition_penalty=-2.0)
    assert request.options.num_beams == 1000
    assert request.options.repetition_penalty == -2.0


@pytest.mark.parametrize(
    ("value", "wire"),
    [
        (None, pb.EARLY_STOPPING_UNSPECIFIED),
        (False, pb.EARLY_STOPPING_HEURISTIC),
        (True, pb.EARLY_STOPPING_FIRST),
        ("never", pb.EARLY_STOPPING_NEVER),
    ],
)
def test_early_stopping(value: Any, wire: int) -> None:
    assert made(early_stopping=value).options.early_stopping == wire


def test_an_empty_list_of_bad_words_replaces_the_checkpoints() -> None:
    chosen = made(bad_words=[]).options
    assert chosen.bad_words_set
    assert not chosen.bad_words


def test_sampling_with_defaults_is_sampling() -> None:
    chosen = made(sampling=options.Sampling()).options
    assert chosen.HasField("sampling")
    assert not chosen.sampling.ListFields()


@pytest.mark.parametrize(
    ("keywords", "field"),
    [
        ({"mode": "tokens"}, "options.mode"),
        ({"early_stopping": 1}, "options.early_stopping"),
        ({"early_stopping": []}, "options.early_stopping"),
        ({"truncation": "left"}, "options.truncation"),
        ({"beams": -1}, "options.num_beams"),
        ({"beams": 2**32}, "options.num_beams"),
        ({"beams": "four"}, "options.num_beams"),
        ({"length_penalty": "long"}, "options.length_penalty"),
        ({"repetition_penalty": math.nan}, "options.repetition_penalty"),
        ({"sampling": options.Sampling(seed=-1)}, "options.sampling.seed"),
        ({"bad_words": [[1], [-1]]}, "options.bad_words[1]"),
        ({"bad_words": [3]}, "options.bad_words[0]"),
        ({"docs": -1}, "n_docs"),
        ({"knowledge_version": 1.5}, "knowledge_version"),
        ({"documents": [options.Document("t", "x"), options.Document("t", "\ud800")]}, "documents[1].text"),
    ],
)
def test_what_protobuf_cannot_hold_names_its_field(keywords: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        made(**keywords)
    assert caught.value.field == field


def test_questions_that_are_not_text() -> None:
    for question in ("\ud800", 7):
        with pytest.raises(InvalidInputError) as caught:
            retrieve_request(question, {})  # type: ignore[arg-type]
        assert caught.value.field == "question"


def test_unknown_keywords_are_refused() -> None:
    with pytest.raises(TypeError, match="beans"):
        made(beans=4)
    with pytest.raises(TypeError, match="beams"):
        score_request("q", "a", {"beams": 4})  # type: ignore[typeddict-unknown-key]


def test_keywords_are_the_options() -> None:
    hints = typing.get_type_hints(options.GenerationKeywords)
    assert hints == typing.get_type_hints(options.GenerationOptions)
    assert all(field.default is None for field in fields(options.GenerationOptions))


def test_requests_of_scores() -> None:
    request = score_request(
        "q", "a", {"mode": "token", "docs": 3, "question_form": "raw", "documents": [options.Document("t", "x")]}
    )
    assert (request.question, request.answer, request.mode, request.n_docs) == ("q", "a", 1, 3)
    assert request.documents[0].title == "t"
