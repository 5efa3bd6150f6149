from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from generator_svc.commands import (
    AdvanceCommand,
    Command,
    Document,
    NextHypothesis,
    OpenCommand,
    Prefix,
    RenderCommand,
    ScoreCommand,
    StepControl,
    StepOutput,
    WidenCommand,
)
from generator_svc.device import use_threads
from generator_svc.engine import GeneratorEngine
from generator_svc.options import EngineOptions
from generator_svc.session import DecodeSession
from generator_svc.slots import INITIAL_SLOTS
from ragserve.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InternalError,
    InvalidInputError,
    ResourceExhaustedError,
    UnavailableError,
)
from ragserve.passage_rules import MAX_PASSAGE_BYTES
from ragserve.serving.metrics import Metrics
from tests.tiny import tiny_passages

PASSAGES = [Document(p.title, p.text, -0.7 * i) for i, p in enumerate(tiny_passages(6, 3))]
QUESTION = "who built the tower?"


def opening(n_docs: int = 3, mode: str = "token", question: str = QUESTION, **more: object) -> OpenCommand:
    return OpenCommand(question, tuple(PASSAGES[:n_docs]), mode, more.pop("candidates", 6), **more)  # type: ignore[arg-type]


async def greedy(session: DecodeSession, command: OpenCommand, steps: int) -> tuple[list[list[int]], np.ndarray]:
    """Follow the best candidate of each hypothesis; the tokens, and all log-probabilities seen."""
    step = (await session.open(command)).output.step
    assert step is not None
    tokens: list[list[int]] = [[] for _ in step.token_ids]
    seen = [step.log_probs]
    for _ in range(steps):
        best = [int(ids[0]) for ids in step.token_ids]
        for own, token in zip(tokens, best, strict=True):
            own.append(token)
        hypotheses = tuple(NextHypothesis(i, token) for i, token in enumerate(best))
        step = (await session.advance(AdvanceCommand(hypotheses, command.candidates))).output
        seen.append(step.log_probs)
    return tokens, np.concatenate(seen, axis=-1)


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def scheduler_of(engine: GeneratorEngine):
    assert engine._worker is not None
    return engine._worker.scheduler


async def test_a_session_alone_equals_the_same_among_sixteen(engine: GeneratorEngine) -> None:
    commands = [opening(1 + i % 6, "sequence" if i % 3 == 0 else "token", f"{QUESTION} {i}") for i in range(16)]

    async def run(command: OpenCommand) -> tuple[list[list[int]], np.ndarray]:
        async with engine.connect() as session:
            return await greedy(session, command, 5)

    together = await asyncio.gather(*(run(command) for command in commands))
    for command, (tokens, log_probs) in zip(commands, together, strict=True):
        alone, expected = await run(command)
        assert tokens == alone
        np.testing.assert_allclose(log_probs, expected, atol=2e-4)
    assert scheduler_of(engine).n_sessions <= 1


async def test_sequence_hypotheses_read_their_own_document(engine: GeneratorEngine) -> None:
    async with engine.connect() as session:
        step = (await session.open(opening(3, "sequence"))).output.step
        chosen = tuple(NextHypothesis(parent, 270 + parent) for parent in (2, 0, 2, 1))
        step = (await session.advance(AdvanceCommand(chosen, 5))).output
    for i, choice in enumerate(chosen):
        async with engine.connect() as other:
            command = OpenCommand(QUESTION, (PASSAGES[choice.parent],), "token", 5)
            await other.open(command)
            alone = (await other.advance(AdvanceCommand((NextHypothesis(0, choice.token),), 5))).output
        assert step.token_ids[i].tolist() == alone.token_ids[0].tolist()
        np.testing.assert_allclose(step.log_probs[i], alone.log_probs[0], atol=1e-3)


async def test_a_moved_session_goes_on_as_before(engine: GeneratorEngine) -> None:
    async with engine.connect() as session:
        await session.open(opening(3))
        await session.advance(AdvanceCommand((NextHypothesis(0, 280), NextHypothesis(0, 281)), 6))
        expected = (await session.advance(AdvanceCommand((NextHypothesis(1, 282), NextHypothesis(0, 283)), 6))).output
    async with engine.connect() as session:
        prefixes = (Prefix((281, 282)), Prefix((280, 283)))
        resumed = (await session.open(opening(3, prefixes=prefixes))).output.step
    assert resumed is not None
    assert resumed.token_ids.tolist() == expected.token_ids.tolist()
    np.testing.assert_allclose(resumed.log_probs, expected.log_probs, atol=1e-3)


async def test_widening_shows_more_of_the_same_step(engine: GeneratorEngine) -> None:
    control = StepControl(banned=(300, 301), requested=(300, 5))
    async with engine.connect() as session:
        first = (await session.open(opening(2, candidates=3, control=control))).output.step
        wide = (await session.widen(WidenCommand((0,), 10_000))).output
        assert first is not None
        assert wide.token_ids.shape == (1, 400)
        assert wide.token_ids[0, :3].tolist() == first.token_ids[0].tolist()
        assert wide.token_ids[0, -2:].tolist() == [-1, -1]
        assert {300, 301}.isdisjoint(wide.token_ids[0].tolist())
        np.testing.assert_array_equal(wide.requested[0], first.requested[0])
        np.testing.assert_allclose(np.exp(wide.log_probs[0][:, :398]).sum(-1) <= 1.0001, True)


async def test_scores_equal_the_steps(engine: GeneratorEngine) -> None:
    async with engine.connect() as session:
        tokens, seen = await greedy(session, opening(3, candidates=1), 4)
        (score, text) = (await session.score(ScoreCommand((tuple(tokens[0]), "the river")))).output
        np.testing.assert_allclose(score.log_probs, seen[0, :, :4], atol=1e-3)
        assert text.token_ids[0] == 0
        assert text.token_ids[-1] == 2
        rendered = (await session.render(RenderCommand((score.token_ids, ())))).output
        assert "".join(rendered[0].pieces) == rendered[0].text


async def test_encode_only_scores_without_a_step(engine: GeneratorEngine) -> None:
    async with engine.connect() as session:
        opened = await session.open(opening(2, encode_only=True, candidates=0))
        assert opened.output.step is None
        assert {timing.stage for timing in opened.timings} == {"queue", "prefill"}
        assert len((await session.score(ScoreCommand(((7, 8),)))).output) == 1
        with pytest.raises(InvalidInputError, match="0 hypotheses"):
            await session.advance(AdvanceCommand((NextHypothesis(0, 5),), 3))


async def test_timings_name_the_stages_and_add_up(engine: GeneratorEngine) -> None:
    async with engine.connect() as session:
        loop = asyncio.get_running_loop()
        started = loop.time()
        reply = await session.open(opening(4))
        whole = loop.time() - started
    stages = {timing.stage: timing.seconds for timing in reply.timings}
    assert set(stages) == {"queue", "prefill", "decode_step", "select"}
    assert sum(stages.values()) <= whole


@pytest.mark.parametrize(
    ("command", "field"),
    [
        (opening(question=" "), "open.question"),
        (opening(question="x" * 100_000), "open.question"),
        (opening(question="river " * 600), "open.question"),
        (opening(0), "open.documents"),
        (OpenCommand(QUESTION, tuple(PASSAGES * 2), "token", 3), "open.documents"),
        (OpenCommand(QUESTION, (Document("a", "b", float("nan")),), "token", 3), "open.documents[0].log_prior"),
        (OpenCommand(QUESTION, (Document("a", "b" * (MAX_PASSAGE_BYTES + 1)),), "token", 3), "open.documents[0].text"),
        (opening(candidates=0), "open.candidates"),
        (opening(max_context_tokens=10**6), "open.max_context_tokens"),
        (opening(max_context_tokens=3), "open.max_context_tokens"),
        (opening(control=StepControl(banned=(1, 400))), "open.control.banned[1]"),
        (opening(prefixes=(Prefix((1, 2)), Prefix((1, 999)))), "open.prefixes[1].token_ids[1]"),
        (opening(prefixes=(Prefix((1,) * 600),)), "open.prefixes[0].token_ids"),
        (opening(3, "sequence", prefixes=(Prefix((1,), 3),)), "open.prefixes[0].document"),
        (opening(prefixes=(Prefix(()),) * 17), "open.prefixes"),
        (opening(max_hypotheses=17), "open.max_hypotheses"),
        (opening(max_new_tokens=10**4), "open.max_new_tokens"),
        (AdvanceCommand((), 3), "advance.hypotheses"),
        (AdvanceCommand((NextHypothesis(0, 1), NextHypothesis(1, 1)), 3), "advance.hypotheses[1].parent"),
        (AdvanceCommand((NextHypothesis(0, 400),), 3), "advance.hypotheses[0].token"),
        (AdvanceCommand((NextHypothesis(0, 1),), 0), "advance.candidates"),
        (AdvanceCommand((NextHypothesis(0, 1),) * 17, 3), "advance.hypotheses"),
        (WidenCommand((1,), 3), "widen.hypotheses[0]"),
        (WidenCommand((), 3), "widen.hypotheses"),
        (WidenCommand((0,), 0), "widen.candidates"),
        (ScoreCommand(()), "score.targets"),
        (ScoreCommand(((1,), ())), "score.targets[1].tokens"),
        (ScoreCommand(((1, 400),)), "score.targets[0].tokens.token_ids[1]"),
        (ScoreCommand(("river " * 1000,)), "score.targets[0].text"),
        (RenderCommand(((1,), (2, 400))), "render.sequences[1].token_ids[1]"),
    ],
)
async def test_bad_input_is_named_and_the_engine_goes_on(engine: GeneratorEngine, command: Command, field: str) -> None:
    async with engine.connect() as session:
        if not isinstance(command, OpenCommand):
            with pytest.raises(InvalidInputError) as early:
                await session.handle(command)
            assert early.value.field == "open"
            await session.open(opening(2))
        with pytest.raises(InvalidInputError) as caught:
            await session.handle(command)
        assert caught.value.field == field
    async with engine.connect() as session:
        assert (await session.open(opening(1))).output.step is not None


async def test_a_session_opens_once(engine: GeneratorEngine) -> None:
    async with engine.connect() as session:
        await session.open(opening(1))
        with pytest.raises(InvalidInputError, match="already"):
            await session.open(opening(1))


async def test_sequences_end_at_the_models_last_position(engine: GeneratorEngine) -> None:
    longest = engine.limits.max_target_tokens
    async with engine.connect() as session:
        await session.open(opening(1, prefixes=(Prefix((280,) * (longest - 2)),)))
        await session.advance(AdvanceCommand((NextHypothesis(0, 280),), 3))
        with pytest.raises(InvalidInputError, match=str(longest)):
            await session.advance(AdvanceCommand((NextHypothesis(0, 280),), 3))


async def test_leaving_in_any_way_frees_the_session(engine: GeneratorEngine) -> None:
    scheduler = scheduler_of(engine)

    async def leave() -> None:
        async with engine.connect() as session:
            await session.open(opening(3))
            raise ValueError

    async def hang() -> None:
        async with engine.connect() as session:
            await session.open(opening(3))
            while True:
                await session.advance(AdvanceCommand((NextHypothesis(0, 7),), 3))

    with pytest.raises(ValueError):
        await leave()
    tasks = [asyncio.create_task(hang()) for _ in range(3)]
    await eventually(lambda: scheduler.n_sessions == 3)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await eventually(lambda: scheduler.n_sessions == 0)
    assert scheduler.used_bytes == 0


async def test_the_deadline_ends_the_session(engine: GeneratorEngine) -> None:
    with pytest.raises(DeadlineExceededError):
        async with engine.connect(0.0):
            pass
    async with engine.connect(0.3) as session:
        await session.open(opening(2))
        assert isinstance(await asyncio.wait_for(session.ended, 20), DeadlineExceededError)
    assert scheduler_of(engine).n_sessions == 0


async def test_a_silent_session_expires_and_a_full_engine_refuses(bart_dir: Path) -> None:
    options = EngineOptions(device="cpu", idle_seconds=0.3, max_sessions=1)
    engine = GeneratorEngine(bart_dir, options, Metrics())
    with pytest.raises(UnavailableError):
        engine.info()
    await engine.start()
    try:
        async with engine.connect() as session, engine.connect() as refused:
            await session.open(opening(2))
            with pytest.raises(ResourceExhaustedError, match="max_sessions"):
                await refused.open(opening(1))
            assert "idle" in str(await asyncio.wait_for(session.ended, 20))
            with pytest.raises(FailedPreconditionError, match="ended"):
                await session.score(ScoreCommand(((5,),)))
            assert (await refused.open(opening(1))).output.step is not None
    finally:
        await engine.stop()


async def test_a_client_that_never_opens_is_not_waited_for(bart_dir: Path) -> None:
    engine = GeneratorEngine(bart_dir, EngineOptions(device="cpu", idle_seconds=0.1), Metrics())
    await engine.start()
    async with engine.connect() as session:
        assert "Open" in str(await asyncio.wait_for(session.ended, 20))
    await engine.stop()


async def test_nan_logits_fail_their_session_only(engine: GeneratorEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    assert engine._loaded is not None
    model = engine._loaded.model
    plain = type(model).logits

    async with engine.connect() as good, engine.connect() as bad:
        await good.open(opening(1))
        await bad.open(opening(1))
        with monkeypatch.context() as patch:
            patch.setattr(model, "logits", lambda hidden: plain(model, hidden) * float("nan"), raising=False)
            with pytest.raises(InternalError, match="NaN"):
                await bad.advance(AdvanceCommand((NextHypothesis(0, 5),), 3))
        step: StepOutput = (await good.advance(AdvanceCommand((NextHypothesis(0, 5),), 3))).output
        assert np.isfinite(step.log_probs).all()


async def test_no_memory_for_the_cache_ends_only_the_session_that_needs_it(bart_dir: Path) -> None:
    engine = GeneratorEngine(bart_dir, EngineOptions(device="cpu"), Metrics())
    await engine.start()
    assert engine._worker is not None
    cache = engine._worker._runner.cache
    grow = cache.grow

    def no_memory(n_slots: int) -> None:
        if n_slots > INITIAL_SLOTS:
            raise torch.OutOfMemoryError("CUDA out of memory")

    try:
        async with engine.connect() as small, engine.connect() as large:
            await small.open(opening(1))
            cache.grow = no_memory  # type: ignore[method-assign]
            many = (NextHypothesis(0, 5),) * 200
            await large.open(opening(3))
            await large.advance(AdvanceCommand(many, 3))
            with pytest.raises(ResourceExhaustedError, match="cache_bytes") as caught:
                await large.advance(AdvanceCommand(many, 3))
            assert caught.value.retry_after_seconds
            await small.advance(AdvanceCommand((NextHypothesis(0, 5),), 3))
            cache.grow = grow  # type: ignore[method-assign]
        async with engine.connect() as large:
            await large.open(opening(3))
            for _ in range(3):
                await large.advance(AdvanceCommand(many, 3))
    finally:
        await engine.stop()


async def test_stopping_answers_what_is_waiting(bart_dir: Path) -> None:
    engine = GeneratorEngine(bart_dir, EngineOptions(device="cpu"), Metrics())
    await engine.start()
    async with engine.connect() as session:
        await session.open(opening(1))
        await engine.stop()
        assert isinstance(await session.ended, UnavailableError)


async def test_memory_does_not_grow_with_sessions(engine: GeneratorEngine) -> None:
    async def serve(count: int) -> None:
        for _ in range(count):
            async with engine.connect() as session:
                await greedy(session, opening(6), 2)

    await serve(30)
    gc.collect()
    before = psutil.Process().memory_info().rss
    await serve(60)
    gc.collect()
    assert psutil.Process().memory_info().rss - before < 16 * 2**20
    await eventually(lambda: scheduler_of(engine).used_bytes == 0)


async def test_loading_leaves_no_thread_behind(bart_dir: Path) -> None:
    """A second team of OpenMP would keep the worker's own from spinning; see `_in_passing`."""

    def threads() -> set[int]:
        return {thread.id for thread in psutil.Process().threads()}

    use_threads(2)  # gives torch a thread for another purpose
    before = threads()
    engine = GeneratorEngine(bart_dir, EngineOptions(device="cpu", precision="int8", threads=2), Metrics())
    await engine.start()
    try:
        for _ in range(200):
            if len(threads() - before) == 1:  # the worker, which has not computed anything yet
                break
            await asyncio.sleep(0.01)
        assert len(threads() - before) == 1
    finally:
        await engine.stop()
