"""Decode steps on a GPU: CUDA graphs, kernels and precisions against plain operators and against the CPU."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from generator_svc.commands import StepOutput
from generator_svc.engine import GeneratorEngine
from generator_svc.gpu.stepper import SelectedStep, StaticStepper
from generator_svc.models.precision import Precision
from generator_svc.options import EngineOptions
from generator_svc.runner import Runner
from generator_svc.slots import INITIAL_SLOTS
from generator_svc.steps import PlainStepper
from ragserve.errors import FailedPreconditionError
from ragserve.serving.metrics import Metrics
from tests.generator_svc.step_cases import Sessions, check_same, outputs
from tests.generator_svc.support import build, load
from tests.generator_svc.test_engine import PASSAGES, AdvanceCommand, NextHypothesis, opening
from tests.tiny import tiny_model_dir

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU")
CUDA = torch.device("cuda")
# Of log-probabilities, in nats: what rounding the tiny models' activations to 8 or 11 bits may change.
ERRORS: dict[Precision, float] = {"bfloat16": 2.0, "float16": 0.4}
CANDIDATES, STEPS, DOCUMENTS = 16, 12, 4


@pytest.fixture(autouse=True)
def _inference():
    with torch.inference_mode():
        yield


@pytest.fixture(scope="module", params=["bart", "t5-gated"])
def directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    build(request.param).save_pretrained(path)
    return path


class Counted:
    """A capture that counts."""

    def __init__(self) -> None:
        from generator_svc.gpu.cuda import GraphCapture  # noqa: PLC0415

        self.capture = GraphCapture()
        self.count = 0

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        replay = self.capture(function)
        self.count += 1
        return replay


class World:
    """A model on the GPU with three steppers on one cache: plain, static, and static with graphs."""

    def __init__(self, directory: Path, precision: Precision) -> None:
        from generator_svc.gpu.cuda import TritonKernels  # noqa: PLC0415

        torch.backends.cuda.enable_cudnn_sdp(False)  # as the service does: see placement.py
        model = load(directory, precision, CUDA)
        self.runner, self.capture = Runner(model, CUDA), Counted()
        self.plain = PlainStepper(self.runner)
        self.graphs = StaticStepper(model, self.runner.cache, TritonKernels(), self.plain, self.capture)
        self.static = self.graphs.without_graphs()
        self.sessions = Sessions(self.runner, 1)


@pytest.mark.parametrize("precision", ["float32", *ERRORS])
def test_graphs_equal_eager_steps(directory: Path, precision: Precision) -> None:
    world = World(directory, precision)
    for turn in range(12):
        if turn < 4:
            world.sessions.open(1 + turn, shared=turn % 2 == 0)
        if turn == 8:  # the cache moves
            world.sessions.scheduler.slots.allocate(INITIAL_SLOTS)
            world.runner.cache.grow(world.sessions.scheduler.slots.size)
        tasks = world.sessions.tasks()
        eager = outputs(world.static, tasks)
        for _ in range(2):  # the first captures, the second replays
            check_same(outputs(world.graphs, tasks), eager, error=1e-5)
        if precision == "float32":
            check_same(eager, outputs(world.plain, tasks))
        world.sessions.advance()
    assert world.capture.count > 2


@pytest.mark.parametrize("precision", ERRORS)
def test_kernels_are_near_plain_operators(directory: Path, precision: Precision) -> None:
    world = World(directory, precision)
    world.sessions.open(4, shared=True)
    differences, spread = [], []
    for _ in range(6):
        tasks = world.sessions.tasks(controls=False)
        (ours,), (plain,) = outputs(world.static, tasks), world.plain.run(tasks)
        every = plain.select(range(len(tasks[0].controls)), 10**6)
        for own_ids, own, ids, exact in zip(
            ours.token_ids, ours.log_probs, every.token_ids, every.log_probs, strict=True
        ):
            by_id = exact[:, np.argsort(ids)]
            differences.append(np.abs(own - by_id[:, own_ids]))
            spread.append(exact.std())
        world.sessions.advance()
    assert np.concatenate(differences, axis=None).mean() < 0.05 * max(np.mean(spread), 0.4)


def test_steps_do_not_wait_for_the_gpu(directory: Path) -> None:
    world = World(directory, "bfloat16")
    world.sessions.open(3, shared=True)
    tasks = world.sessions.tasks()
    world.graphs.run(tasks)
    step = next(iter(world.graphs._steps.values()))
    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch says that the mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
        step.write(tasks)
        step.compute()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert isinstance(world.graphs.run(tasks)[0], SelectedStep)


async def followed(model: Path, device: str, precision: Precision, tokens: list[int] | None = None) -> list[StepOutput]:
    """The steps of greedy search, or along given tokens."""
    engine = GeneratorEngine(model, EngineOptions(device=device, precision=precision), Metrics())  # type: ignore[arg-type]
    await engine.start()
    try:
        async with engine.connect() as session:
            step = (await session.open(opening(DOCUMENTS, candidates=CANDIDATES))).output.step
            steps = [step]
            for i in range(STEPS):
                token = int(steps[-1].token_ids[0, 0]) if tokens is None else tokens[i]
                command = AdvanceCommand((NextHypothesis(0, token),), CANDIDATES)
                steps.append((await session.advance(command)).output)
    finally:
        await engine.stop()
    return steps


@pytest.mark.parametrize("precision", ERRORS)
@pytest.mark.parametrize("family", ["bart", "t5-gated"])
def test_half_precisions_are_near_float32(family: str, precision: Precision, tmp_path: Path) -> None:
    model = tiny_model_dir(tmp_path, family, "rag-token")
    exact = asyncio.run(followed(model, "cpu", "float32"))  # not async: pytest-asyncio may be missing
    tokens = [int(step.token_ids[0, 0]) for step in exact]
    ours = asyncio.run(followed(model, "cuda", precision, tokens))
    priors = np.array([passage.log_prior for passage in PASSAGES[:DOCUMENTS]])[:, None]
    certain = 0
    for step, other in zip(exact, ours, strict=True):
        columns = {int(token): i for i, token in enumerate(other.token_ids[0])}
        shared = [(i, columns[int(token)]) for i, token in enumerate(step.token_ids[0]) if int(token) in columns]
        expected = step.log_probs[0][:, [i for i, _ in shared]]
        found = other.log_probs[0][:, [i for _, i in shared]]
        assert len(shared) >= CANDIDATES // 2
        assert np.abs(found - expected).mean() < ERRORS[precision] / 3
        assert np.abs(found - expected).max() < ERRORS[precision]
        first, second = np.logaddexp.reduce(step.log_probs[0] + priors, axis=0)[:2]
        if first - second > ERRORS[precision]:
            certain += 1
            assert other.token_ids[0, 0] == step.token_ids[0, 0]
    assert certain > 0


def test_int8_is_refused(tmp_path: Path) -> None:
    model = tiny_model_dir(tmp_path, "bart", "rag-token")
    with pytest.raises(FailedPreconditionError, match="cpu only"):
        asyncio.run(followed(model, "cuda", "int8"))
