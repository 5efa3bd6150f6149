"""The engine with documents that are shared and kept, against the engine that encodes them for every session."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest

from generator_svc.commands import AdvanceCommand, Document, NextHypothesis, OpenCommand, Prefix, StepOutput
from generator_svc.engine import GeneratorEngine
from generator_svc.models.base import DocumentState
from generator_svc.models.precision import Precision
from generator_svc.options import EngineOptions
from ragserve.errors import InternalError
from ragserve.serving.metrics import Metrics
from tests.tiny import tiny_passages

PASSAGES = [Document(p.title, p.text, -0.7 * i) for i, p in enumerate(tiny_passages(8, 3))]
QUESTIONS = ("who built the tower?", "where does the river end?", "when did she write it?")
LARGE = 2**30


class Service:
    """An engine and its figures."""

    def __init__(self, engine: GeneratorEngine, metrics: Metrics) -> None:
        self.engine = engine
        self._metrics = metrics

    def figure(self, name: str) -> float:
        value = self._metrics.registry.get_sample_value(f"ragserve_{name}")
        assert value is not None
        return value

    @property
    def found(self) -> tuple[float, float]:
        """Hits and misses so far."""
        return self.figure("encoder_cache_hits_total"), self.figure("encoder_cache_misses_total")

    async def ask(self, command: OpenCommand, seed: int = 0, n_steps: int = 5) -> list[StepOutput]:
        """All steps of a session that extends hypotheses as `seed` says."""
        rng = random.Random(seed)
        async with self.engine.connect() as session:
            steps = [(await session.open(command)).output.step]
            for _ in range(n_steps):
                ids = steps[-1].token_ids
                parents = [rng.randrange(len(ids)) for _ in range(rng.randint(1, 3))]
                chosen = tuple(NextHypothesis(parent, int(ids[parent, rng.randrange(2)])) for parent in parents)
                steps.append((await session.advance(AdvanceCommand(chosen, command.candidates))).output)
        await self.idle()
        return steps

    async def idle(self) -> None:
        """Until no session is left that nobody asks for."""
        async with asyncio.timeout(20):
            while self.figure("decode_sessions"):  # noqa: ASYNC110
                await asyncio.sleep(0.002)


@asynccontextmanager
async def service(
    directory: Path, encoder_cache_bytes: int, precision: Precision = "float32"
) -> AsyncIterator[Service]:
    metrics = Metrics()
    options = EngineOptions(
        device="cpu", precision=precision, encoder_cache_bytes=encoder_cache_bytes, prefill_tokens=100
    )
    engine = GeneratorEngine(directory, options, metrics)
    await engine.start()
    try:
        yield Service(engine, metrics)
    finally:
        await engine.stop()


def opening(question: str, passages: Sequence[int], mode: str = "token", **more: object) -> OpenCommand:
    documents = tuple(PASSAGES[i] for i in passages)
    return OpenCommand(question, documents, mode, 6, **more)  # type: ignore[arg-type]


def crowd() -> list[OpenCommand]:
    """Questions that come again, with passages that they have in common."""
    rng = random.Random(11)
    return [
        opening(rng.choice(QUESTIONS), rng.sample(range(5), rng.randint(1, 4)), rng.choice(("token", "sequence")))
        for _ in range(20)
    ]


def arrays(step: StepOutput) -> list[np.ndarray]:
    flat: list[np.ndarray] = []
    for field in fields(step):
        value = getattr(step, field.name)
        flat += list(value) if isinstance(value, tuple) else [value]
    return flat


def check_same(ours: Sequence[StepOutput], theirs: Sequence[StepOutput], precision: Precision) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        if precision == "float32":  # whose sums depend on the rows beside
            np.testing.assert_array_equal(one.token_ids, other.token_ids)
            np.testing.assert_allclose(one.log_probs, other.log_probs, atol=2e-4)
        else:
            for array, expected in zip(arrays(one), arrays(other), strict=True):
                np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("family", ["bart", pytest.param("t5", marks=pytest.mark.long)])
async def test_what_is_answered_is_the_same(family: str, precision: Precision, request: pytest.FixtureRequest) -> None:
    directory, commands = request.getfixturevalue(f"{family}_dir"), crowd()
    async with service(directory, 0, precision) as plain:
        expected = [await plain.ask(command, i) for i, command in enumerate(commands)]
        assert plain.found[0] == 0
    async with service(directory, LARGE, precision) as cached:
        together = await asyncio.gather(*(cached.ask(command, i) for i, command in enumerate(commands)))
        misses = cached.found[1]
        after = [await cached.ask(command, i) for i, command in enumerate(commands)]
        n_documents = sum(len(command.documents) for command in commands)
        assert misses == len({(command.question, document) for command in commands for document in command.documents})
        assert cached.found == (2 * n_documents - misses, misses)
    for steps in (together, after):
        for ours, theirs in zip(steps, expected, strict=True):
            check_same(ours, theirs, precision)


async def test_documents_are_kept_after_their_session(bart_dir: Path) -> None:
    before = live_bytes()
    async with service(bart_dir, LARGE) as cached:
        first = await cached.ask(opening(QUESTIONS[0], (0, 1, 2)))
        tokens, kept = cached.figure("prefill_tokens_total"), cached.figure("encoder_cache_bytes")
        assert cached.found == (0, 3)
        assert kept == live_bytes() - before > 0
        check_same(await cached.ask(opening(QUESTIONS[0], (0, 1, 2))), first, "float32")
        assert cached.found == (3, 3)
        assert (cached.figure("prefill_tokens_total"), cached.figure("encoder_cache_bytes")) == (tokens, kept)
        await cached.ask(opening(QUESTIONS[1], (0, 1, 2)))
        assert cached.found == (3, 6), "another question is another context"
        assert cached.figure("cache_bytes") == 0


def live_bytes() -> int:
    """Bytes of all encoder states in this process."""
    gc.collect()
    states = [one for one in gc.get_objects() if type(one) is DocumentState]
    return sum(layer.untyped_storage().nbytes() for state in states for layer in state.layers)


async def test_memory_stays_within_the_budget(bart_dir: Path) -> None:
    budget = 200_000
    async with service(bart_dir, budget) as cached:
        before = live_bytes()
        for i in range(12):
            await asyncio.gather(*(cached.ask(opening(f"{QUESTIONS[0]} {i} {j}", (0, 1, 2))) for j in range(3)))
            assert cached.figure("encoder_cache_bytes") <= budget
        assert budget / 2 < live_bytes() - before == cached.figure("encoder_cache_bytes")
        for _ in range(2):
            await cached.ask(opening(f"{QUESTIONS[0]} 11 2", (0, 1, 2)))
        hits = cached.found[0]
        assert hits >= 3
        await cached.ask(opening(f"{QUESTIONS[0]} 0 0", (0, 1, 2)))
        assert cached.found[0] == hits, "it was pushed out"


async def test_a_session_that_leaves_while_its_documents_are_encoded(
    bart_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = opening(QUESTIONS[0], (0, 1))
    async with service(bart_dir, 0) as plain:
        expected = await plain.ask(command)
    async with service(bart_dir, LARGE) as cached:
        assert cached.engine._worker is not None
        runner, entered, release = cached.engine._worker._runner, threading.Event(), threading.Event()
        encode = runner.encode

        def slowly(contexts: Sequence[Sequence[int]]) -> object:
            entered.set()
            assert release.wait(20)
            return encode(contexts)

        monkeypatch.setattr(runner, "encode", slowly)
        leaving = asyncio.create_task(cached.ask(command))
        await asyncio.to_thread(entered.wait, 20)
        staying = asyncio.create_task(cached.ask(command))
        while cached.figure("decode_sessions") < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.002)
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        release.set()
        check_same(await staying, expected, "float32")
        assert cached.found == (2, 2)


async def test_a_session_moves_to_a_replica_that_has_its_documents_and_to_one_that_has_not(bart_dir: Path) -> None:
    prefixes = (Prefix((281, 282)), Prefix((280,)))
    moved = opening(QUESTIONS[0], (0, 1, 2), prefixes=prefixes)
    async with service(bart_dir, 0) as plain:
        expected = await plain.ask(moved)
    async with service(bart_dir, LARGE) as old, service(bart_dir, LARGE) as new:
        await old.ask(opening(QUESTIONS[0], (0, 1, 2)))
        check_same(await old.ask(moved), expected, "float32")
        check_same(await new.ask(moved), expected, "float32")
        assert (old.found, new.found) == ((3, 3), (0, 3))


async def test_documents_of_a_failed_pass_are_not_kept(bart_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = opening(QUESTIONS[0], (0, 1, 2))
    async with service(bart_dir, LARGE) as cached:
        expected = await cached.ask(command)
        assert cached.engine._loaded is not None
        model = cached.engine._loaded.model
        plain = type(model).logits
        with monkeypatch.context() as patch:
            patch.setattr(model, "logits", lambda hidden: plain(model, hidden) * float("nan"), raising=False)
            with pytest.raises(InternalError, match="NaN"):
                await cached.ask(command)
        await cached.idle()
        assert cached.figure("encoder_cache_bytes") == 0
        check_same(await cached.ask(command), expected, "float32")
        assert cached.found == (3, 6)


async def test_a_session_that_only_scores_is_answered_from_what_is_there(bart_dir: Path) -> None:
    async with service(bart_dir, LARGE) as cached:
        await cached.ask(opening(QUESTIONS[0], (0, 1)))
        async with cached.engine.connect() as session:
            opened = await session.open(opening(QUESTIONS[0], (0, 1), encode_only=True))
        assert opened.output.step is None
        assert cached.found == (2, 2)
