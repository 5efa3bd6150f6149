"""Steps over static buffers, on CPU with the twins of the kernels, against the plain ones."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from generator_svc import placement
from generator_svc.commands import StepControl
from generator_svc.engine import GeneratorEngine
from generator_svc.gpu import stepper as stepper_module
from generator_svc.gpu.kernels import TorchKernels
from generator_svc.gpu.layout import FINE_ROWS, bucket_of
from generator_svc.gpu.stepper import SelectedStep, StaticStepper
from generator_svc.kv_cache import KVCache
from generator_svc.models.base import Seq2SeqModel
from generator_svc.options import EngineOptions
from generator_svc.runner import Runner
from generator_svc.slots import INITIAL_SLOTS
from generator_svc.steps import PlainStep, PlainStepper, StepTask
from ragserve.errors import InternalError
from ragserve.serving.metrics import Metrics
from tests.generator_svc.step_cases import Sessions, check_same, output_of, outputs
from tests.generator_svc.support import CPU, VOCAB, build, load
from tests.generator_svc.test_engine import greedy, opening


class Recorder:
    """In place of CUDA graphs: a replay runs the function again, where the cache must still be where it was."""

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self.captured = self.replayed = 0

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        self.captured += 1
        places = [layer.data_ptr() for layer in self.cache.layers]

        def replay() -> None:
            assert places == [layer.data_ptr() for layer in self.cache.layers]
            self.replayed += 1
            function()

        return replay


class World:
    """A model with both steppers on one cache."""

    def __init__(self, model: Seq2SeqModel, seed: int = 0) -> None:
        self.runner = Runner(model, CPU)
        self.plain = PlainStepper(self.runner)
        self.recorder = Recorder(self.runner.cache)
        self.static = StaticStepper(model, self.runner.cache, TorchKernels(), self.plain, self.recorder)
        self.sessions = Sessions(self.runner, seed)

    def step(self, **how: object) -> None:
        """One step by both, which must agree; then every session goes on."""
        tasks = self.sessions.tasks(**how)  # type: ignore[arg-type]
        check_same(outputs(self.static, tasks), outputs(self.plain, tasks))
        self.sessions.advance()


@pytest.fixture(scope="module", params=["bart", "t5-gated"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Seq2SeqModel:
    directory = tmp_path_factory.mktemp("model")
    build(request.param).save_pretrained(directory)
    return load(directory)


@pytest.mark.parametrize("seed", range(4))
def test_sessions_of_both_modes_step_as_without_buffers(model: Seq2SeqModel, seed: int) -> None:
    world = World(model, seed)
    for turn in range(7):
        if turn < 4:
            world.sessions.open(1 + (seed + turn) % 5, shared=turn % 2 == 0)
        if turn == 5:
            world.sessions.leave(world.sessions.live[1])
        world.step(candidates=(1, 6, 40)[turn % 3])
    assert world.recorder.captured > 1


def test_many_hypotheses_fill_several_tiles_and_paths_outgrow_their_bucket(model: Seq2SeqModel) -> None:
    world = World(model)
    live = world.sessions.open(3, shared=True)
    world.step()
    for _ in range(35):
        session = live.session
        world.sessions.scheduler.finished(session, 0.0)
        world.sessions.scheduler.advance(session, [(0, 5)] * 20, 0.0)
        world.runner.cache.grow(world.sessions.scheduler.slots.size)
    tasks = world.sessions.tasks()
    bucket = bucket_of(tasks)
    assert bucket is not None
    assert (bucket.rows, bucket.longest) == (FINE_ROWS, 64)
    # The slots between were never stepped: both read the same random keys, finite or not.
    for layer in world.runner.cache.layers:
        layer.normal_()
    check_same(outputs(world.static, tasks), outputs(world.plain, tasks), error=1e-3)


def test_padding_writes_nothing(model: Seq2SeqModel) -> None:
    world = World(model)
    world.sessions.open(3, shared=True)
    world.sessions.open(2, shared=False)
    for layer in world.runner.cache.layers:
        layer.fill_(7.0)
    tasks = world.sessions.tasks()
    world.static.run(tasks)
    own = [slots[-1] for task in tasks for hypothesis in task.rows.hypotheses for slots in hypothesis.slots]
    for layer in world.runner.cache.layers:
        changed = (layer != 7.0).any(1).nonzero()[:, 0].tolist()
        assert changed == sorted(own)


def test_a_bucket_is_captured_once_and_again_when_the_cache_has_moved(model: Seq2SeqModel) -> None:
    world = World(model)
    world.sessions.open(3, shared=True)
    for _ in range(4):
        tasks = world.sessions.tasks()
        check_same(outputs(world.static, tasks), outputs(world.plain, tasks))
        world.sessions.advance(most=1)
    assert (world.recorder.captured, world.recorder.replayed) == (1, 3)
    world.sessions.scheduler.slots.allocate(INITIAL_SLOTS)
    world.sessions.advance(most=1)
    for _ in range(2):
        tasks = world.sessions.tasks()
        check_same(outputs(world.static, tasks), outputs(world.plain, tasks))
    assert (world.recorder.captured, world.recorder.replayed) == (2, 4)


def test_the_least_recently_used_bucket_makes_room(model: Seq2SeqModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepper_module, "MOST_STEPS", 2)
    world = World(model)
    world.sessions.open(1, shared=True)
    for candidates, captured in ((5, 1), (20, 2), (5, 2), (40, 3), (5, 3), (20, 4)):
        world.static.run(world.sessions.tasks(candidates))
        assert world.recorder.captured == captured
        assert len(world.static._steps) <= 2


def test_a_step_that_cannot_be_captured_goes_on_without(model: Seq2SeqModel) -> None:
    def fail(function: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    world = World(model)
    world.static = StaticStepper(model, world.runner.cache, TorchKernels(), world.plain, fail)
    world.sessions.open(2, shared=True)
    for _ in range(3):
        world.step()


def test_widening_selects_from_the_same_step(model: Seq2SeqModel) -> None:
    world = World(model)
    world.sessions.open(3, shared=True)
    world.step()
    tasks = world.sessions.tasks()
    (step,), (plain,) = world.static.run(tasks), world.plain.run(tasks)
    assert isinstance(step, SelectedStep)
    hypotheses = range(len(tasks[0].controls))
    for asked, count in ((hypotheses, 2), (hypotheses, 16), (hypotheses, 10**6), ([len(hypotheses) - 1], 6)):
        check_same([step.select(asked, count)], [plain.select(asked, count)])
    assert step.select(hypotheses, 10**6).token_ids.shape[1] == VOCAB


def test_what_no_bucket_has_room_for_runs_plainly(model: Seq2SeqModel) -> None:
    world = World(model)
    world.sessions.open(2, shared=True)
    for control in (StepControl(banned=tuple(range(3, 100)) * 6), StepControl(requested=(5, 6) * 150)):
        (task,) = world.sessions.tasks()
        task = StepTask(task.rows, (control,), task.log_priors, task.candidates)
        assert bucket_of([task]) is None
        (step,), expected = world.static.run([task]), outputs(world.plain, [task])
        assert isinstance(step, PlainStep)
        check_same([output_of(step, task)], expected)


def test_nan_fails_its_session_only(model: Seq2SeqModel) -> None:
    world = World(model)
    world.sessions.open(2, shared=True)
    bad = world.sessions.open(2, shared=False)
    bad.documents[0].layers[-1].fill_(np.nan)
    tasks = world.sessions.tasks()
    steps = world.static.run(tasks)
    assert np.isfinite(output_of(steps[0], tasks[0]).log_normalizers).all()
    with pytest.raises(InternalError, match="NaN"):
        output_of(steps[1], tasks[1])


async def test_an_engine_with_static_steps_answers_the_same(
    bart_dir: Path, engine: GeneratorEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def static(model: Seq2SeqModel, device: object, cache_bytes: int) -> tuple[Runner, StaticStepper]:
        runner = Runner(model, CPU)
        capture = Recorder(runner.cache)
        return runner, StaticStepper(model, runner.cache, TorchKernels(), PlainStepper(runner), capture)

    monkeypatch.setitem(placement.ON_DEVICE, "cpu", static)
    other = GeneratorEngine(bart_dir, EngineOptions(device="cpu", max_documents=8, max_hypotheses=16), Metrics())
    await other.start()
    commands = [opening(1 + i % 6, "sequence" if i % 3 == 0 else "token", f"who {i}?") for i in range(6)]

    async def answer(one: GeneratorEngine, index: int) -> tuple[list[list[int]], np.ndarray]:
        async with one.connect() as session:
            return await greedy(session, commands[index], 5)

    try:
        together = await asyncio.gather(*(answer(other, i) for i in range(len(commands))))
        for i, (tokens, log_probs) in enumerate(together):
            expected, expected_log_probs = await answer(engine, i)
            assert tokens == expected
            np.testing.assert_allclose(log_probs, expected_log_probs, atol=1e-3)
    finally:
        await other.stop()
