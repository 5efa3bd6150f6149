"""Fewer passages than the default number of documents, and searches that find none: through every call."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import ragserve
from bench.processes import running
from retriever_svc.build import build_knowledge_base
from tests.retriever_svc.sources import WHOLE
from tests.system.harness import Assets, Launcher, Stack

QUESTION = "who built the old tower?"
TEXTS = {"a": "The old tower stands by the river.", "b": "A king built the castle."}
WARNING = "The knowledge base has 2 passages; this request uses 2 instead of 3."  # the checkpoint's n_docs is 3


@pytest.fixture(scope="module")
def two(assets: Assets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A knowledge base of two passages."""
    directory = tmp_path_factory.mktemp("two")
    rows = [{"id": name, "text": text, "kind": name, "year": 1990, "tags": ["x"]} for name, text in TEXTS.items()]
    source = directory / "two.jsonl"
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    build_knowledge_base(source, directory / "kb", assets.models["bart"], build=WHOLE)
    return directory / "kb"


@pytest.fixture(scope="module")
def clients(launcher: Launcher, stack: Stack, two: Path) -> Iterator[tuple[ragserve.KnowledgeClient, ragserve.Client]]:
    retriever = launcher.retriever(lexical=True, knowledge=two)
    orchestrator = launcher.orchestrator(retriever.target, [stack.generators["bart"].target])
    with (
        running(retriever, orchestrator),
        ragserve.KnowledgeClient(retriever.target) as knowledge,
        ragserve.Client(orchestrator.target, timeout_seconds=60) as rag,
    ):
        yield knowledge, rag


@pytest.fixture
def knowledge(clients: tuple[ragserve.KnowledgeClient, ragserve.Client]) -> ragserve.KnowledgeClient:
    return clients[0]


@pytest.fixture
def rag(clients: tuple[ragserve.KnowledgeClient, ragserve.Client]) -> ragserve.Client:
    return clients[1]


CALLS: dict[str, Callable[..., Any]] = {
    "generate": lambda rag, **given: rag.generate(QUESTION, max_length=6, mode="token", **given),
    "sequence": lambda rag, **given: rag.generate(QUESTION, max_length=6, mode="sequence", **given),
    "stream": lambda rag, **given: list(rag.generate_stream(QUESTION, max_length=6, **given))[-1],
    "score": lambda rag, **given: rag.score(QUESTION, "a king", **given),
    "retrieve": lambda rag, **given: rag.retrieve(QUESTION, **given),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_default_adapts_and_says_so(rag: ragserve.Client, call: str) -> None:
    found = CALLS[call](rag)
    assert len(found.passages) == 2
    assert WARNING in found.warnings
    assert WARNING in found.to_dict()["warnings"]
    assert WARNING not in CALLS[call](rag, docs=2).warnings


@pytest.mark.parametrize("call", CALLS)
def test_a_number_that_was_chosen_is_refused(rag: ragserve.Client, call: str) -> None:
    with pytest.raises(ragserve.InvalidInputError, match="1 and 2: the knowledge base has 2 passages") as caught:
        CALLS[call](rag, docs=3)
    assert caught.value.field == "n_docs"


def test_the_retriever_adapts_alike(knowledge: ragserve.KnowledgeClient) -> None:
    warning = "The knowledge base has 2 passages; this request uses 2 instead of 5."
    found = knowledge.retrieve(QUESTION)
    assert (len(found.passages), found.warnings) == (2, (warning,))
    (streamed,) = knowledge.retrieve_stream([QUESTION])
    assert streamed.result().warnings == (warning,)
    with pytest.raises(ragserve.InvalidInputError, match="k is 3; it must be between 1 and 2"):
        knowledge.retrieve(QUESTION, 3)


def test_a_default_above_the_retrievers_limit(launcher: Launcher, stack: Stack) -> None:
    retriever = launcher.retriever(max_k=2)
    orchestrator = launcher.orchestrator(retriever.target, [stack.generators["bart"].target])
    with running(retriever, orchestrator), ragserve.Client(orchestrator.target, timeout_seconds=60) as rag:
        found = rag.retrieve(QUESTION)
    assert found.warnings == ("The retriever finds at most 2 passages (max_k); this request uses 2 instead of 3.",)


EMPTY = [
    (
        {"filter": {"lang": "xx"}},
        "search.filter",
        "No passage of knowledge version 1 matches filter. None has a text, number or boolean under the "
        "metadata key 'lang'. The metadata keys there are: 'kind' and 'year'.",
    ),
    (
        {"filter": {"tags": "x"}},
        "search.filter",
        "No passage of knowledge version 1 matches filter. None has a text, number or boolean under the metadata key "
        "'tags'. Lists and objects, as those of 'tags', cannot be filtered. The metadata keys there are: 'kind' and "
        "'year'.",
    ),
    (
        {"filter": {"year": ragserve.Range(at_least="abc"), "kind": ragserve.Range(at_least="zz")}},
        "search.filter",
        "No passage of knowledge version 1 matches filter. A bound is a text, but all values of 'year' are numbers. "
        "Write a number with a decimal point, such as 0.5.",
    ),
    (
        {"filter": {"kind": ragserve.Range(at_least="zz")}},
        "search.filter",
        "No passage of knowledge version 1 matches filter. Remove a condition.",
    ),
    (
        {"filter": {"title": "x", "kind": "y"}},
        "search.filter",
        "No passage of knowledge version 1 matches filter. None has a text, number or boolean under the "
        "metadata key 'title'. Only metadata can be filtered, not title.",
    ),
    (
        {"filter": {"kind": "xx"}, "search_kind": "bm25"},
        "search.filter",
        "No passage of knowledge version 1 matches filter. Remove a condition.",
    ),
    (
        {"filter": {"kind": "xx"}, "search_kind": "rrf"},
        "search.filter",
        "No passage of knowledge version 1 matches filter. Remove a condition.",
    ),
    (
        {"question": "Whose zebra yawned?", "search_kind": "bm25"},
        "search.kind",
        "No passage of knowledge version 1 contains a word of the question. Ask with other words, or set search_kind "
        "to dense, which needs no common word.",
    ),
    (
        {"question": "Whose zebra yawned?", "search_kind": "bm25", "filter": {"lang": ragserve.none_of("xx")}},
        "search.kind",
        "No passage of knowledge version 1 contains a word of the question.",
    ),
    ({"question": "Is it the ...?", "search_kind": "bm25"}, "question", "The question has no word that BM25"),
]


@pytest.mark.parametrize(("given", "field", "said"), EMPTY)
def test_nothing_found_has_its_true_cause(
    rag: ragserve.Client, knowledge: ragserve.KnowledgeClient, given: dict[str, Any], field: str, said: str
) -> None:
    options = {"question": QUESTION, "knowledge_version": 1, **given}
    for call in (rag.retrieve, rag.generate):
        with pytest.raises(ragserve.NotFoundError) as caught:
            call(**options)
        assert caught.value.field == field
        assert caught.value.message.startswith(said)
    found = knowledge.retrieve(
        options["question"], 1, filter=given.get("filter"), search_kind=given.get("search_kind"), knowledge_version=1
    )
    assert found.passages == ()
    assert found.results[0].nothing_found.startswith(said.partition("search_")[0])
    assert knowledge.retrieve(options["question"], 1).results[0].nothing_found == ""


def test_words_that_only_the_filtered_passages_have(rag: ragserve.Client, knowledge: ragserve.KnowledgeClient) -> None:
    version = knowledge.upsert([{"id": "c", "text": "A zebra yawned.", "metadata": {"lang": "en"}}]).knowledge_version
    with pytest.raises(ragserve.NotFoundError) as caught:
        rag.retrieve("whose zebra?", search_kind="bm25", filter={"lang": ragserve.none_of("en")})
    assert caught.value.field == "search.filter"
    assert caught.value.message.startswith(
        f"No passage of knowledge version {version} that matches filter contains a word of the question."
    )
    knowledge.delete(["c"])


def test_a_knowledge_base_without_passages(rag: ragserve.Client, knowledge: ragserve.KnowledgeClient) -> None:
    version = knowledge.delete(list(TEXTS)).knowledge_version
    said = rf"holds no passages in version {version}\. Add some with `ragserve kb add`\."
    calls: list[Callable[[], Any]] = [lambda: CALLS["generate"](rag), lambda: knowledge.retrieve(QUESTION)]
    for call in calls:
        with pytest.raises(ragserve.FailedPreconditionError, match=said):
            call()
    knowledge.rollback(1)
