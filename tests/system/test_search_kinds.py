"""Search by words and hybrids, through the orchestrator as through the retriever itself."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

import ragserve
from bench.processes import running
from tests.system.harness import Launcher, Stack

QUESTION = "who built the old tower of the river city?"


@dataclass(frozen=True)
class Clients:
    """Of a retriever that holds an index of words, and of an orchestrator in front of it."""

    knowledge: ragserve.KnowledgeClient
    rag: ragserve.Client


@pytest.fixture(scope="module")
def clients(launcher: Launcher, stack: Stack) -> Iterator[Clients]:
    retriever = launcher.retriever(lexical=True)
    orchestrator = launcher.orchestrator(retriever.target, [stack.generators["bart"].target])
    with (
        running(retriever, orchestrator),
        ragserve.KnowledgeClient(retriever.target) as knowledge,
        ragserve.Client(orchestrator.target, timeout_seconds=60) as rag,
    ):
        yield Clients(knowledge, rag)


@pytest.mark.parametrize("kind", ["dense", "bm25", "weighted", "rrf"])
def test_every_kind_reaches_the_retriever(kind: str, clients: Clients) -> None:
    own = [(one.id, one.prior) for one in clients.knowledge.retrieve(QUESTION, 4, search_kind=kind).passages]
    assert [(one.id, one.prior) for one in clients.rag.retrieve(QUESTION, docs=4, search_kind=kind).passages] == own
    answer = clients.rag.generate(QUESTION, docs=4, search_kind=kind, max_length=8)
    assert [one.id for one in answer.passages] == [identifier for identifier, _ in own]


def test_kinds_and_weights_differ(clients: Clients) -> None:
    def found(**options: object) -> list[tuple[str, float]]:
        answer = clients.rag.retrieve(QUESTION, docs=4, **options)  # type: ignore[arg-type]
        return [(one.id, one.prior) for one in answer.passages]

    assert found(search_kind="bm25") != found(search_kind="dense") == found()
    assert found(search_kind="weighted", lexical_weight=0.9) != found(search_kind="weighted", lexical_weight=0.1)


def test_a_retriever_without_an_index_of_words_refuses(stack: Stack) -> None:
    with (
        ragserve.Client(stack.orchestrators["bart"].target) as rag,
        pytest.raises(ragserve.FailedPreconditionError, match="lexical") as caught,
    ):
        rag.retrieve(QUESTION, search_kind="bm25")
    assert caught.value.field == "search.kind"
