"""Sessions of both modes on one scheduler and cache, stepped by two steppers that must agree."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from generator_svc.budget import Capacity
from generator_svc.commands import StepControl, StepOutput
from generator_svc.models.base import DocumentState
from generator_svc.runner import Runner, StepRows
from generator_svc.scheduler import Scheduler
from generator_svc.sessions import Session, Start
from generator_svc.steps import Step, Stepper, StepTask
from tests.generator_svc.support import VOCAB, random_tokens

START = 2


@dataclass
class Live:
    """One session and what belongs to it."""

    session: Session
    documents: tuple[DocumentState, ...]
    log_priors: np.ndarray | None


class Sessions:
    """Opens, steps and extends sessions as the engine does, without threads."""

    def __init__(self, runner: Runner, seed: int) -> None:
        self.runner = runner
        self.rng = random.Random(seed)
        self.scheduler = Scheduler(Capacity(max_rows=10**6))
        self.live: list[Live] = []

    def open(self, n_docs: int, *, shared: bool) -> Live:
        """A session of documents of random lengths; in sequence mode a hypothesis for each."""
        contexts = [random_tokens(self.rng.randint(1, 40), self.rng) for _ in range(n_docs)]
        starts = tuple(Start((START,), document) for document in ([0] if shared else range(n_docs)))
        session = Session(tuple(map(tuple, contexts)), shared, starts)
        self.scheduler.admit(session, 0.0)
        self.runner.cache.grow(self.scheduler.slots.size)
        priors = np.log(np.random.default_rng(n_docs).dirichlet([1.0] * n_docs)).astype(np.float32)
        live = Live(session, tuple(self.runner.encode(contexts).documents), priors if shared else None)
        self.scheduler.encoded(session.documents)
        self.scheduler.started(session)
        self.live.append(live)
        return live

    def tasks(self, candidates: int = 6, controls: bool = True) -> list[StepTask]:
        """The next step of all sessions, with random controls."""
        return [
            StepTask(
                StepRows(live.documents, tuple(live.session.hypotheses), live.session.shared),
                tuple(self._control() if controls else StepControl() for _ in live.session.hypotheses),
                live.log_priors,
                candidates,
            )
            for live in self.live
        ]

    def _control(self) -> StepControl:
        banned, requested = (self.rng.choices(range(VOCAB), k=self.rng.choice((0, 0, 1, 5))) for _ in range(2))
        return StepControl(tuple(banned), tuple(requested))

    def advance(self, most: int = 4) -> None:
        """Every session goes on with random children."""
        for live in self.live:
            n = len(live.session.hypotheses)
            self.scheduler.finished(live.session, 0.0)
            choices = [(self.rng.randrange(n), self.rng.randrange(3, VOCAB)) for _ in range(self.rng.randint(1, most))]
            self.scheduler.advance(live.session, choices, 0.0)
        self.runner.cache.grow(self.scheduler.slots.size)

    def leave(self, live: Live) -> None:
        """A session ends; its slots are used again."""
        self.live.remove(live)
        self.scheduler.close(live.session)
        self.scheduler.plan(0.0)


def outputs(stepper: Stepper, tasks: list[StepTask]) -> list[StepOutput]:
    return [output_of(step, task) for step, task in zip(stepper.run(tasks), tasks, strict=True)]


def output_of(step: Step, task: StepTask) -> StepOutput:
    return step.select(range(len(task.controls)), task.candidates)


def check_same(ours: list[StepOutput], expected: list[StepOutput], error: float = 1e-4) -> None:
    """The same candidates; log-probabilities and what they sum to within `error`."""
    for own, other in zip(ours, expected, strict=True):
        assert own.token_ids.tolist() == other.token_ids.tolist()
        assert own.token_ids.dtype == np.int32
        for name in ("log_probs", "allowed_log_mass", "log_normalizers"):
            mine, theirs = getattr(own, name), getattr(other, name)
            assert mine.dtype == np.float32
            np.testing.assert_allclose(mine, theirs, atol=error, rtol=0)
        for mine, theirs in zip(own.requested, other.requested, strict=True):
            np.testing.assert_allclose(mine, theirs, atol=error, rtol=0)
