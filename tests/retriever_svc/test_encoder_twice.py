"""An encoder held twice: who has the machine alone gets all threads, batches at the same time half of them each."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio

from retriever_svc.encoder import TextEncoder
from retriever_svc.encoder_session import EncoderSession
from retriever_svc.engine import RetrieverEngine
from retriever_svc.loading import RetrievalOptions
from retriever_svc.types import Float32, Int64, Query
from tests.retriever_svc.test_engine import make_engine
from tests.serving.conftest import until

TEXTS = ["who built the great tower?", "river of the north", "a much longer question about the towns of the south"]


class Passes:
    """Every pass of every session, real ones: which session made it, once the gate is open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sessions: list[EncoderSession] = []
        self.gate = threading.Event()
        self.gate.set()
        run = EncoderSession.run

        def remembered(session: EncoderSession, input_ids: Int64, attention_mask: Int64) -> Float32:
            self.sessions.append(session)
            assert self.gate.wait(60)
            return run(session, input_ids, attention_mask)

        monkeypatch.setattr(EncoderSession, "run", remembered)

    def taken(self) -> set[EncoderSession]:
        """The sessions of the passes since the last time."""
        sessions, self.sessions = set(self.sessions), []
        return sessions


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    return Passes(monkeypatch)


@pytest_asyncio.fixture
async def engine(
    passes: Passes, model: Path, knowledge_base: Path, options: RetrievalOptions
) -> AsyncIterator[RetrieverEngine]:
    engine = make_engine(model, knowledge_base, replace(options, threads=2, encoder_twice=True))
    await engine.start()
    passes.taken()
    yield engine
    await engine.stop()


def test_both_give_the_same_vectors(model: Path, passes: Passes) -> None:
    encoder = TextEncoder.load(model / "query_encoder", device="cpu", threads=2, twice=True)
    assert len(passes.taken()) == 2  # both are warm
    tokens = encoder.tokenize_queries(TEXTS)
    alone, first = encoder.encode_tokens(tokens), passes.taken()
    beside, second = encoder.encode_tokens(tokens, beside=True), passes.taken()
    np.testing.assert_allclose(beside, alone, atol=1e-6)
    assert len(first) == len(second) == 1
    assert first != second


@pytest.mark.parametrize(("threads", "twice"), [(1, True), (2, False)])
def test_one_is_enough_for_one_thread_or_where_it_is_said(
    model: Path, passes: Passes, threads: int, twice: bool
) -> None:
    encoder = TextEncoder.load(model / "query_encoder", device="cpu", threads=threads, twice=twice)
    encoder.encode_tokens(encoder.tokenize_queries(TEXTS), beside=True)
    assert len(passes.taken()) == 1


async def test_a_lone_caller_gets_all_threads_and_those_that_come_together_share_them(
    engine: RetrieverEngine, passes: Passes
) -> None:
    lone = []
    for _ in range(3):
        await engine.retrieve([Query(text) for text in TEXTS], k=5)
        lone.append(passes.taken())
    assert lone[0] == lone[1] == lone[2]
    await asyncio.gather(*(engine.retrieve([Query(TEXTS[0])], k=5) for _ in range(4)))
    assert not passes.taken() & lone[0]


async def test_a_request_that_comes_while_another_is_encoded_takes_the_other_threads(
    engine: RetrieverEngine, passes: Passes
) -> None:
    passes.gate.clear()
    calls = []
    for number in (1, 2):
        calls.append(asyncio.create_task(engine.retrieve([Query(TEXTS[0])], k=5)))
        await until(lambda number=number: len(passes.sessions) == number)
    passes.gate.set()
    first, second = [result.results[0] for result in await asyncio.gather(*calls)]
    assert len(passes.taken()) == 2
    assert [hit.passage.id for hit in first.hits] == [hit.passage.id for hit in second.hits]
    await engine.retrieve([Query(TEXTS[0])], k=5)
    assert len(passes.taken()) == 1
