"""The generator's CUDA path where there is no GPU: on tensors that say they are on one. See `pretend_cuda`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from generator_svc import engine as engine_module
from generator_svc.commands import (
    AdvanceCommand,
    NextHypothesis,
    Prefix,
    ScoreCommand,
    StepControl,
    StepOutput,
    TargetScore,
    WidenCommand,
)
from generator_svc.engine import GeneratorEngine
from generator_svc.gpu.stepper import SelectedStep, StaticStepper
from generator_svc.loading import LoadedGenerator
from generator_svc.models.precision import Precision
from generator_svc.options import Device, EngineOptions
from generator_svc.runner import Runner
from generator_svc.slots import INITIAL_SLOTS
from generator_svc.steps import PlainStepper
from generator_svc.worker import Worker
from ragserve.serving.metrics import Metrics
from tests.generator_svc.pretend_cuda import State, TwinKernels, capture, pretended, thread, without_waiting
from tests.generator_svc.step_cases import Sessions, check_same, outputs
from tests.generator_svc.support import build, load
from tests.generator_svc.test_engine import opening
from tests.tiny import tiny_model_dir

pytest.importorskip("triton")

from generator_svc.gpu import cuda


@pytest.fixture(autouse=True)
def _pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with pretended(monkeypatch):
        yield


@pytest.fixture(scope="module", params=["bart", "t5-gated"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    build(request.param).save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=["bart", "t5-gated"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp(request.param), request.param, "rag-token")


class World:
    """A model on the pretended GPU with three steppers on one cache: plain, static, and static with graphs."""

    def __init__(self, directory: Path, precision: Precision = "float32") -> None:
        model = load(directory, precision, torch.device("cuda"))
        self.runner = Runner(model, torch.device("cuda"))
        self.plain = PlainStepper(self.runner)
        self.graphs = StaticStepper(model, self.runner.cache, TwinKernels(), self.plain, capture)
        self.static = self.graphs.without_graphs()
        self.sessions = Sessions(self.runner, 1)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_replayed_steps_equal_eager_ones(directory: Path, precision: Precision) -> None:
    world = World(directory, precision)
    for turn in range(6):
        if turn < 3:
            world.sessions.open(1 + turn, shared=turn % 2 == 0)
        if turn == 4:  # the cache moves
            world.sessions.scheduler.slots.allocate(INITIAL_SLOTS)
            world.runner.cache.grow(world.sessions.scheduler.slots.size)
        tasks = world.sessions.tasks(candidates=(6, 20)[turn % 2])
        eager = outputs(world.static, tasks)
        for _ in range(2):
            check_same(outputs(world.graphs, tasks), eager, error=1e-5)
        if precision == "float32":
            check_same(eager, outputs(world.plain, tasks))
        world.sessions.advance()


def test_only_reading_waits(directory: Path) -> None:
    world = World(directory)
    world.sessions.open(3, shared=True)
    tasks = world.sessions.tasks()
    world.graphs.run(tasks)
    (step,) = world.graphs._steps.values()
    State.waits.clear()
    with without_waiting():
        step.write(tasks)
        step.compute()
    step.read()
    assert State.waits == ["synchronize"]
    assert isinstance(world.graphs.run(tasks)[0], SelectedStep)


class OnDevice:
    """An engine's threads, which see the pretended device too."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        run, load_model = Worker._run, engine_module.load_generator

        def worker(self: Worker) -> None:
            with thread():
                run(self)

        def loading(*args: Any) -> LoadedGenerator:
            with thread():
                return load_model(*args)

        patch.setattr(Worker, "_run", worker)
        patch.setattr(engine_module, "load_generator", loading)
        patch.setattr(cuda, "TritonKernels", TwinKernels)
        patch.setattr(cuda, "GraphCapture", lambda: capture)


def options(device: Device, precision: Precision = "float32") -> EngineOptions:
    return EngineOptions(device=device, precision=precision, max_documents=8, max_hypotheses=16, draft_tokens=4)


async def everything(engine: GeneratorEngine) -> tuple[list[StepOutput], tuple[TargetScore, ...]]:
    """Sessions of every kind: guesses, beams, prefixes, widening, one hypothesis per document, and scores."""
    await engine.start()
    steps = []
    try:
        async with engine.connect() as session:
            await session.open(opening(3))
            context = list(session._session.contexts[0])  # type: ignore[union-attr]
            advance = AdvanceCommand((NextHypothesis(0, context[3]),), 6, 9)
            steps.append((await session.advance(advance)).output)
            assert steps[-1].drafted
            beams = tuple(NextHypothesis(1, token, StepControl((5,), (9, 11))) for token in (7, 8, 9))
            steps.append((await session.advance(AdvanceCommand(beams, 6))).output)
            steps.append((await session.widen(WidenCommand((1, 2), 200))).output)
            scores = (await session.score(ScoreCommand(((5, 6, 7), (5, 9), (8,))))).output
        async with engine.connect() as session:
            prefixes = (Prefix((7, 9)), Prefix((7, 11, 12)), Prefix())
            steps.append((await session.open(opening(3, prefixes=prefixes))).output.step)
        async with engine.connect() as session:
            steps.append((await session.open(opening(3, "sequence"))).output.step)
            ones = tuple(NextHypothesis(parent, 7) for parent in (2, 0, 0))
            steps.append((await session.advance(AdvanceCommand(ones, 6))).output)
    finally:
        await engine.stop()
    return steps, scores


async def test_the_engine_answers_as_on_the_cpu(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, expected_scores = await everything(GeneratorEngine(model, options("cpu"), Metrics()))
    OnDevice(monkeypatch)
    engine = GeneratorEngine(model, options("cuda"), Metrics())
    steps, scores = await everything(engine)
    check_same(steps, expected, error=1e-3)
    for own, other in zip(scores, expected_scores, strict=True):
        np.testing.assert_allclose(own.log_probs, other.log_probs, atol=1e-4)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
async def test_the_engine_runs_in_half_precision(
    model: Path, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    OnDevice(monkeypatch)
    engine = GeneratorEngine(model, options("cuda", precision), Metrics())
    steps, scores = await everything(engine)
    assert all(np.isfinite(step.log_normalizers).all() for step in steps)
    assert all(np.isfinite(score.log_probs).all() for score in scores)
