"""A step of all sessions in one pass, and the candidates that each of them is answered with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from generator_svc.candidates import StepScores, score_step, select
from generator_svc.commands import StepControl, StepOutput
from generator_svc.runner import Runner, StepRows


@dataclass(frozen=True)
class StepTask:
    """One session in a pass: its rows, a control for each hypothesis, log p(z|x) in token mode, and M."""

    rows: StepRows
    controls: tuple[StepControl, ...]
    log_priors: npt.NDArray[np.float32] | None  # [n_docs]
    candidates: int


class Step(Protocol):
    """The present step of one session, kept until its next."""

    def select(self, hypotheses: Sequence[int], n_candidates: int) -> StepOutput:
        """The `n_candidates` best allowed tokens of some hypotheses; at most the vocabulary.

        Raises:
            InternalError: a logit is NaN.
        """


class Stepper(Protocol):
    """How steps are computed: chosen once, for the device."""

    def run(self, tasks: Sequence[StepTask]) -> Sequence[Step]:
        """One pass for all rows of all sessions."""


@dataclass
class PlainStep:
    """Logits [n_docs, n_hypotheses, vocab], normalized and combined when they are first asked for."""

    logits: torch.Tensor
    task: StepTask
    _scores: StepScores | None = field(default=None, init=False)

    def select(self, hypotheses: Sequence[int], n_candidates: int) -> StepOutput:
        """See `Step`."""
        if self._scores is None:
            priors = self.task.log_priors
            log_priors = None if priors is None else torch.from_numpy(priors).to(self.logits.device)
            self._scores = score_step(self.logits, self.task.controls, log_priors)
        return select(self._scores, hypotheses, n_candidates)


class PlainStepper:
    """One operator after the other, on any device."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def run(self, tasks: Sequence[StepTask]) -> list[Step]:
        """See `Stepper`."""
        logits = self._runner.step([task.rows for task in tasks])
        return [PlainStep(own, task) for own, task in zip(logits, tasks, strict=True)]
