"""Zero, False and empty values are said: each has its effect, or is refused by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from typing import Any

import pytest

import ragserve
from orchestrator.convert import generate_from_proto
from ragserve.errors import InvalidInputError
from ragserve.options import Sampling
from ragserve.v1 import orchestrator_pb2 as pb
from tests.client.conftest import Running
from tests.client.odd import parameters
from tests.live.harness import Home

Read = Callable[[pb.GenerateRequest], object]
# What arrives for a falsy value of a keyword of `generate`: it is set (True), or has its documented meaning.
ARRIVES: dict[str, tuple[Any, Read]] = {
    "question": ("", lambda request: request.question == ""),
    "docs": (0, lambda request: request.HasField("n_docs")),
    "knowledge_version": (0, lambda request: request.knowledge_version == 0),  # the newest
    "filter": ({}, lambda request: not request.search.filter),  # no condition
    "nprobe": (0, lambda request: request.search.nprobe == 0),  # the index's own
    "ef_search": (0, lambda request: request.search.ef_search == 0),  # the index's own
    "lexical_weight": (0.0, lambda request: request.search.HasField("lexical_weight")),
    "token_posteriors": (False, lambda request: not request.token_posteriors),
    "bad_words": ([], lambda request: request.options.bad_words_set and not request.options.bad_words),
    "early_stopping": (False, lambda request: request.options.early_stopping == pb.EARLY_STOPPING_HEURISTIC),
    "max_context_tokens": (0, lambda request: request.options.max_context_tokens == 0),  # the checkpoint's
    "sampling": (
        Sampling(temperature=0.0, top_k=0, top_p=0.0, seed=0),
        lambda request: (
            {field.name for field, _ in request.options.sampling.ListFields()}
            == {"temperature", "top_k", "top_p", "seed"}
        ),
    ),
    **{
        name: (0, lambda request, field=field: request.options.HasField(field))
        for name, field in {
            "beams": "num_beams",
            **{name: name for name in ("num_return_sequences", "max_length", "min_length", "max_new_tokens")},
            **{name: name for name in ("min_new_tokens", "length_penalty", "no_repeat_ngram_size")},
            "repetition_penalty": "repetition_penalty",
        }.items()
    },
}
REFUSED: dict[str, Any] = {
    "timeout_seconds": 0,
    "documents": [],
    **dict.fromkeys(("mode", "decoding", "search_kind", "question_form", "truncation"), ""),
}


def test_every_keyword_is_here() -> None:
    assert {*ARRIVES, *REFUSED} == set(parameters(ragserve.Client.generate))


@pytest.mark.parametrize("name", ARRIVES)
def test_what_arrives_is_what_was_set(name: str, client: ragserve.Client, service: Running) -> None:
    value, arrived = ARRIVES[name]
    with suppress(InvalidInputError) if name == "docs" else nullcontext():  # the service refuses 0
        client.generate(**{"question": "q", name: value})
    (request,) = service.rag.requests
    assert arrived(request)


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_meaning_is_refused(name: str, client: ragserve.Client, service: Running) -> None:
    with pytest.raises(InvalidInputError, match=name):
        client.generate(**{"question": "q", name: REFUSED[name]})
    assert not service.rag.requests


def test_what_the_orchestrator_reads(client: ragserve.Client, service: Running) -> None:
    zeros: dict[str, Any] = dict.fromkeys(("beams", "min_length", "max_length", "min_new_tokens", "max_new_tokens"), 0)
    sampling = Sampling(temperature=0.0, top_k=0, top_p=0.0, seed=0)
    client.generate("q", **zeros, length_penalty=0.0, lexical_weight=0.0, bad_words=[], sampling=sampling)
    ask = generate_from_proto(service.rag.requests[0])
    options = ask.options
    assert (options.num_beams, options.min_length, options.max_length, options.length_penalty) == (0, 0, 0, 0.0)
    assert (options.min_new_tokens, options.max_new_tokens, options.bad_words) == (0, 0, ())
    assert options.sampling is not None
    assert vars(options.sampling) == {"temperature": 0.0, "top_k": 0, "top_p": 0.0, "seed": 0}
    assert ask.sources.search.lexical_weight == 0.0


def test_the_command_line_passes_zeros_on(service: Running) -> None:
    flags = "--min-length 0 --length-penalty 0 --no-repeat-ngram 0 --temperature 0 --top-k 0 --top-p 0 --seed 0"
    command = [sys.executable, "-c", "from ragserve_cli.main import main; main()"]
    command += ["ask", "q", "--target", service.target, *flags.split()]
    subprocess.run(command, check=True, timeout=100)
    options = service.rag.requests[0].options
    assert all(options.HasField(name) for name in ("min_length", "length_penalty", "no_repeat_ngram_size"))
    assert all(options.sampling.HasField(name) for name in ("temperature", "top_k", "top_p", "seed"))


@pytest.fixture(scope="module")
def lexical(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ragserve.KnowledgeClient]:
    """A retriever that searches by words alone unless a request says otherwise."""
    home = Home.build(tmp_path_factory.mktemp("home"), 30)
    running = home.replica(lexical=True, search_kind="weighted", lexical_weight=1.0)
    with ragserve.KnowledgeClient(running.process.target) as client:
        yield client
    running.stop()


def ids(found: ragserve.LookupResult) -> list[str]:
    return [passage.id for passage in found.passages]


def test_a_weight_of_zero_alone_is_taken(lexical: ragserve.KnowledgeClient) -> None:
    dense = ids(lexical.retrieve("old city", 10, search_kind="dense"))
    assert ids(lexical.retrieve("old city", 10, lexical_weight=0.0)) == dense
    assert ids(lexical.retrieve("old city", 10)) != dense
    (streamed,) = lexical.retrieve_stream([ragserve.Lookup("old city", 10, lexical_weight=0.0)])
    assert ids(streamed.result()) == dense


@pytest.mark.parametrize(
    ("field", "call"),
    [
        ("k", lambda client: client.retrieve("q", 0)),
        ("queries", lambda client: client.retrieve([])),
        ("queries[0].text", lambda client: client.retrieve("")),
        ("queries[0].text", lambda client: client.retrieve([""])),
        ("options.kind", lambda client: client.retrieve("q", search_kind="")),
        ("ids", lambda client: client.delete([])),
        ("ids", lambda client: client.get([])),
        ("passages", lambda client: client.upsert([])),
        ("passages[0].vector", lambda client: client.upsert([{"id": "a", "text": "b", "vector": []}])),
        ("passages[0].metadata", lambda client: client.upsert([{"id": "a", "text": "b", "metadata": []}])),
        ("passages[0].metadata", lambda client: client.upsert([{"id": "a", "text": "b", "metadata": ""}])),
        ("from_version", lambda client: client.diff(0)),
        ("keep_versions", lambda client: client.compact(keep_versions=0)),
        ("timeout_seconds", lambda client: client.info(timeout_seconds=0)),
    ],
)
def test_empty_values_of_the_knowledge_client_are_refused(
    lexical: ragserve.KnowledgeClient, field: str, call: Callable[[ragserve.KnowledgeClient], object]
) -> None:
    with pytest.raises(InvalidInputError) as caught:
        call(lexical)
    assert caught.value.field.startswith(field)


def test_zeros_of_the_knowledge_client_that_have_an_effect(lexical: ragserve.KnowledgeClient) -> None:
    done = lexical.upsert([{"id": "zero", "text": "nothing", "title": "", "metadata": {}}])
    assert done.inserted == 1
    assert ids(lexical.retrieve("nothing", 1, knowledge_version=0, filter={}, nprobe=0, ef_search=0)) == ["zero"]
    assert lexical.diff(done.knowledge_version - 1, 0, limit=0).added_ids == ("zero",)
    lexical.delete(["zero"])
    assert lexical.compact(keep_versions=1, keep_seconds=0).versions_removed >= 2
