"""No command may hold up the others for long or take memory that nobody counts, however much it asks for."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from generator_svc.commands import (
    AdvanceCommand,
    NextHypothesis,
    OpenCommand,
    Prefix,
    ScoreCommand,
    StepControl,
    StepOutput,
    TargetScore,
    WidenCommand,
)
from generator_svc.engine import BESIDE_ARRAYS, GeneratorEngine
from generator_svc.models.bart import Bart
from generator_svc.models.base import Rows, SelfAttention
from generator_svc.options import EngineOptions
from generator_svc.sessions import Work
from generator_svc.trie import MAX_NODES
from ragserve.errors import InvalidInputError, ResourceExhaustedError
from ragserve.serving.metrics import Metrics
from tests.generator_svc.support import random_tokens
from tests.generator_svc.test_engine import PASSAGES, QUESTION, opening

VOCAB = 400
RNG = random.Random(5)
PREFIXES = tuple(Prefix(tuple(random_tokens(30, RNG))) for _ in range(12))
TARGETS = tuple(tuple(random_tokens(20, RNG)) for _ in range(40))


@asynccontextmanager
async def running(model: Path, **options: int) -> AsyncIterator[GeneratorEngine]:
    engine = GeneratorEngine(model, EngineOptions(device="cpu", **options), Metrics())
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def long_work(engine: GeneratorEngine) -> tuple[StepOutput, tuple[TargetScore, ...]]:
    """A step after long prefixes, and scores of many targets."""
    async with engine.connect() as session:
        step = (await session.open(opening(6, prefixes=PREFIXES))).output.step
        assert step is not None
        return step, (await session.score(ScoreCommand(TARGETS))).output


async def test_passes_over_prefixes_and_targets_are_of_bounded_size(
    bart_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    decode = Bart.decode

    def counted(self: Bart, rows: Rows, attention: SelfAttention) -> torch.Tensor:
        passes.append(len(rows.tokens))
        return decode(self, rows, attention)

    async with running(bart_dir, prefill_tokens=100_000) as engine:
        expected_step, expected_scores = await long_work(engine)
    monkeypatch.setattr(Bart, "decode", counted)
    async with running(bart_dir, prefill_tokens=64) as engine:
        step, scores = await long_work(engine)
    assert max(passes) <= MAX_NODES  # a tree is not divided
    assert sum(passes) > 30 * MAX_NODES
    np.testing.assert_allclose(step.log_probs, expected_step.log_probs, atol=1e-4)
    for own, other in zip(scores, expected_scores, strict=True):
        np.testing.assert_allclose(own.log_probs, other.log_probs, atol=1e-4)


async def test_others_step_between_the_passes(bart_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """During each pass over prefixes another session asks for a step, and has it before the next but one ends."""
    async with running(bart_dir, prefill_tokens=64) as engine, engine.connect() as other, engine.connect() as long:
        await other.open(opening(1))
        assert engine._worker is not None
        assert other._session is not None
        session, runner = other._session, engine._worker._runner
        prime, steps = runner.prime, list[int]()

        def counted(*args: object) -> int:
            until = time.monotonic() + 10
            while session.work is not Work.STEP and time.monotonic() < until:
                time.sleep(0.001)
            steps.append(session.steps_run)
            return prime(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(runner, "prime", counted)

        async def stepping() -> None:
            while True:
                await other.advance(AdvanceCommand((NextHypothesis(0, 7),), 3))

        task = asyncio.create_task(stepping())
        await long.open(opening(6, prefixes=PREFIXES))
        task.cancel()
        assert len(steps) >= 12
        assert all(before < after for before, after in zip(steps, steps[2:], strict=False))


async def test_whoever_is_let_in_finds_room_to_the_end(bart_dir: Path) -> None:
    """Searches with four beams over three documents: five fit, and none of them is refused later."""
    async with running(bart_dir, max_rows=64) as engine, AsyncExitStack() as stack:
        sessions = [await stack.enter_async_context(engine.connect()) for _ in range(6)]
        command = opening(3, max_hypotheses=4, max_new_tokens=8)
        for session in sessions[:5]:
            await session.open(command)
        with pytest.raises(ResourceExhaustedError, match="others have 60 rows, this session asks for 12"):
            await sessions[5].open(command)
        for step in range(8):
            beams = tuple(NextHypothesis(i if step else 0, 7 + i) for i in range(4))
            await asyncio.gather(*(session.advance(AdvanceCommand(beams, 3)) for session in sessions[:5]))


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (opening(4, control=StepControl(banned=(1,) * (VOCAB + 1))), "open.control.banned"),
        (opening(4, control=StepControl(requested=(1,) * (VOCAB + 1))), "open.control.requested"),
        (opening(6, candidates=VOCAB, prefixes=(Prefix((7,)), Prefix((8,)))), "open.candidates"),
        (AdvanceCommand((NextHypothesis(0, 7), NextHypothesis(0, 8)), VOCAB), "advance.candidates"),
        (
            AdvanceCommand((NextHypothesis(0, 7, StepControl(requested=tuple(range(VOCAB)))),) * 2, 3),
            "advance.candidates",
        ),
        (WidenCommand((0, 0), 3), "widen.hypotheses[1]"),
        (WidenCommand((0, 1), 10**6), "widen.hypotheses"),
        (ScoreCommand(((7,) * 100,) * 4), "score.targets"),
    ],
)
async def test_answers_that_cannot_be_sent_are_not_computed(
    bart_dir: Path, command: OpenCommand | AdvanceCommand | WidenCommand | ScoreCommand, field: str
) -> None:
    """A dense answer for one hypothesis and six documents has 11,228 bytes."""
    async with running(bart_dir, max_message_bytes=12_000 + BESIDE_ARRAYS) as engine, engine.connect() as session:
        if not isinstance(command, OpenCommand):
            starts = (Prefix((7,)), Prefix((8,)))
            await session.open(OpenCommand(QUESTION, tuple(PASSAGES[:6]), "token", 3, prefixes=starts))
        with pytest.raises(InvalidInputError) as caught:
            await session.handle(command)
        assert caught.value.field == field
        if not isinstance(command, OpenCommand):
            assert (await session.widen(WidenCommand((1,), VOCAB))).output.log_probs.shape == (1, 6, VOCAB)
