"""Many sessions at once on one engine; a third of them leave early. The seed is printed; RAGSERVE_TEST_SEED chooses it.

Each is then run alone on the same engine: it must give the same tokens and log-probabilities.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import numpy.typing as npt
import pytest
import torch

from checkpoint_import import ImportOptions, import_checkpoint
from generator_svc.commands import AdvanceCommand, Document, Mode, NextHypothesis, OpenCommand, StepOutput
from generator_svc.engine import GeneratorEngine
from generator_svc.options import EngineOptions
from generator_svc.session import DecodeSession
from ragserve.errors import ResourceExhaustedError
from ragserve.serving.metrics import Metrics
from tests.tiny import generator_tokenizer, save_question_encoder, tiny_generator

BART_BASE = {
    "d_model": 768,
    "encoder_layers": 6,
    "decoder_layers": 6,
    "encoder_attention_heads": 12,
    "decoder_attention_heads": 12,
    "encoder_ffn_dim": 3072,
    "decoder_ffn_dim": 3072,
}
# Of that width, documents would drown the tokens so far, and one token would take all of the probability.
SCALES = {
    "shared.weight": 0.3,
    "embed_positions.weight": 0.1,
    "self_attn.out_proj.weight": 0.5,
    "encoder_attn.out_proj.weight": 0.1,
}
TOLERANCE = 1e-3  # of a log-probability
CANDIDATES = 4
N_CLIENTS, N_ALONE = 1000, 150  # one alone takes twice as long as one in the crowd
RETRY_SECONDS = 0.02

Choices = list[tuple[int, int]]  # parent and token of each hypothesis


@dataclass
class Answer:
    """What a client saw, and what it chose after each step."""

    steps: list[StepOutput] = field(default_factory=list)
    choices: list[Choices] = field(default_factory=list)


class Client:
    """Opens a session and extends its hypotheses; what it does is drawn from its number."""

    def __init__(self, number: int, *, leaves_early: bool) -> None:
        rng = random.Random(number)
        self.number = number
        self.n_requests = 1 + rng.randint(3, 8)  # Open, and as many steps
        texts = ["".join(rng.choices(ascii_lowercase, k=rng.randint(2, 6))) for _ in range(rng.choice((1, 1, 2, 3)))]
        documents = tuple(Document(text[0], text[1:], -rng.random()) for text in texts)
        mode: Mode = rng.choice(("token", "sequence"))
        self.command = OpenCommand("who?", documents, mode, CANDIDATES)
        self.leaves_after = rng.randrange(self.n_requests) if leaves_early else self.n_requests
        self.cancelled_after = 10 ** rng.uniform(-4, 0) if leaves_early and rng.random() < 0.5 else None  # seconds
        self.answer = Answer()
        self.refusals = 0

    @property
    def is_complete(self) -> bool:
        return len(self.answer.steps) == self.n_requests

    async def visit(self, engine: GeneratorEngine) -> None:
        """Be one of the crowd: stay to the end, leave, or have the task cancelled while it waits or runs."""
        async with engine.connect() as session:
            await self._ask(session, self.answer, self.leaves_after)
            if self.cancelled_after is not None:
                task = asyncio.current_task()
                assert task is not None
                asyncio.get_running_loop().call_later(self.cancelled_after, task.cancel)
                await self._ask(session, self.answer, self.n_requests - self.leaves_after)

    async def alone(self, engine: GeneratorEngine) -> Answer:
        """The steps that it saw, again, with nobody else there."""
        answer = Answer()
        async with engine.connect() as session:
            await self._ask(session, answer, len(self.answer.steps))
        return answer

    async def _ask(self, session: DecodeSession, answer: Answer, n_requests: int) -> None:
        """So many more replies, of which the very first is to Open."""
        for _ in range(n_requests):
            if answer.steps:
                choices = choose(answer.steps[-1], random.Random(self.number + len(answer.steps)))
                hypotheses = tuple(NextHypothesis(parent, token) for parent, token in choices)
                step = (await session.advance(AdvanceCommand(hypotheses, CANDIDATES))).output
                answer.choices.append(choices)
            else:
                step = await self._open(session)
            answer.steps.append(step)

    async def _open(self, session: DecodeSession) -> StepOutput:
        """Comes again while the engine is full."""
        while True:
            try:
                opened = (await session.open(self.command)).output
            except ResourceExhaustedError:
                self.refusals += 1
                await asyncio.sleep(RETRY_SECONDS)
            else:
                assert opened.step is not None
                return opened.step

    def check(self, alone: Answer) -> bool:
        """Compare with the same session alone. False when it chose between tokens as likely as each other."""
        for i, (step, expected) in enumerate(zip(self.answer.steps, alone.steps, strict=True)):
            check_step(step, expected)
            if i < len(self.answer.choices) and self.answer.choices[i] != alone.choices[i]:
                marginals = self._marginals(expected)
                for (parent, token), (same_parent, other) in zip(self.answer.choices[i], alone.choices[i], strict=True):
                    assert parent == same_parent
                    known = dict(zip(expected.token_ids[parent].tolist(), marginals[parent], strict=True))
                    assert abs(known[token] - known[other]) < 2 * TOLERANCE
                return False
        return True

    def _marginals(self, step: StepOutput) -> npt.NDArray[np.float32]:
        """[n_hypotheses, n_candidates]."""
        if self.command.mode == "sequence":
            return step.log_probs[:, 0]
        priors = np.array([document.log_prior for document in self.command.documents], dtype=np.float32)
        return np.asarray(np.logaddexp.reduce(step.log_probs + priors[:, None], axis=1))


def choose(step: StepOutput, rng: random.Random) -> Choices:
    """One to three children of any of the hypotheses, of their best tokens: some twice, some not at all."""
    parents = [rng.randrange(len(step.token_ids)) for _ in range(rng.choice((1, 1, 2, 3)))]
    return [(parent, int(step.token_ids[parent, rng.choice((0, 0, 1))])) for parent in parents]


def check_step(step: StepOutput, expected: StepOutput) -> None:
    """The same candidates, but for one that may change places with one left out that is as likely."""
    assert step.log_probs.shape == expected.log_probs.shape
    for i in range(len(step.token_ids)):
        common, mine, theirs = np.intersect1d(step.token_ids[i], expected.token_ids[i], return_indices=True)
        assert len(common) >= CANDIDATES - 1
        ours, alone = step.log_probs[i][:, mine], expected.log_probs[i][:, theirs]
        np.testing.assert_allclose(ours, alone, atol=TOLERANCE, rtol=0)


class Crowd:
    """Clients that come all at once to one engine."""

    def __init__(self, directory: Path, options: EngineOptions, n_clients: int) -> None:
        seed = int(os.environ.get("RAGSERVE_TEST_SEED", random.SystemRandom().getrandbits(32)))
        print(f"RAGSERVE_TEST_SEED={seed}")  # shown when it fails
        self.clients = [Client((seed << 16) + 16 * i, leaves_early=i % 3 == 2) for i in range(n_clients)]
        self.peak = 0.0
        self.metrics = Metrics()
        self._rng = random.Random(seed)
        self._engine = GeneratorEngine(directory, options, self.metrics)

    @asynccontextmanager
    async def started(self) -> AsyncIterator[GeneratorEngine]:
        await self._engine.start()
        try:
            yield self._engine
        finally:
            await self._engine.stop()

    async def visit(self, engine: GeneratorEngine, seconds: float) -> None:
        """All at once, and for so long at most; nothing is left of them."""
        watching = asyncio.create_task(self._watch())
        tasks = [asyncio.create_task(client.visit(engine)) for client in self.clients]
        async with asyncio.timeout(seconds):
            ends = await asyncio.gather(*tasks, return_exceptions=True)
        watching.cancel()
        for client, end in zip(self.clients, ends, strict=True):
            assert end is None or (client.cancelled_after is not None and isinstance(end, asyncio.CancelledError)), end
            assert client.is_complete or client.leaves_after < client.n_requests
        await self.check_empty()

    async def check_alone(self, engine: GeneratorEngine, n_clients: int) -> None:
        """Some of them, each by itself."""
        clients = [client for client in self._rng.sample(self.clients, n_clients) if client.answer.steps]
        certain = [client.check(await client.alone(engine)) for client in clients]
        assert sum(certain) >= 0.98 * len(clients)
        await self.check_empty()

    async def check_empty(self) -> None:
        async with asyncio.timeout(20):
            while self._gauge("ragserve_decode_sessions"):  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        assert self._gauge("ragserve_cache_bytes") == 0

    async def _watch(self) -> None:
        while True:
            self.peak = max(self.peak, self._gauge("ragserve_decode_sessions"))
            await asyncio.sleep(0.005)

    def _gauge(self, name: str) -> float:
        value = self.metrics.registry.get_sample_value(name)
        assert value is not None
        return value


async def test_sixty_sessions_that_wait_for_room_answer_as_alone(bart_dir: Path) -> None:
    crowd = Crowd(bart_dir, EngineOptions(device="cpu", max_sessions=20, prefill_tokens=128), 60)
    async with crowd.started() as engine:
        await crowd.visit(engine, 30.0)
        await crowd.check_alone(engine, 60)
    assert crowd.peak == 20
    assert sum(client.refusals for client in crowd.clients) > 0
    assert 40 <= sum(client.is_complete for client in crowd.clients) < 60


def bart_base(tmp_path: Path) -> Path:
    """A model directory of BART-base's size, but for its vocabulary."""
    model = tiny_generator("bart", **BART_BASE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(next((scale for end, scale in SCALES.items() if name.endswith(end)), 1.0))
        model.final_logits_bias.clamp_(max=0.0)  # the end token is one like the others
    generator = tmp_path / "generator"
    model.save_pretrained(generator)
    generator_tokenizer("bart").save_pretrained(generator)
    question_encoder = save_question_encoder(tmp_path / "question_encoder")
    return import_checkpoint(question_encoder, tmp_path / "model", ImportOptions(generator=generator)).directory


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_a_thousand_sessions_of_bart_base_answer_as_alone(tmp_path: Path) -> None:
    options = EngineOptions(device="cpu", max_sessions=N_CLIENTS, max_rows=50_000, idle_seconds=600.0)
    crowd = Crowd(bart_base(tmp_path), options, N_CLIENTS)
    async with crowd.started() as engine:
        await crowd.visit(engine, 600.0)
        await crowd.check_alone(engine, N_ALONE)
    assert crowd.peak > 0.9 * N_CLIENTS
    assert 0.66 * N_CLIENTS <= sum(client.is_complete for client in crowd.clients) < 0.8 * N_CLIENTS
