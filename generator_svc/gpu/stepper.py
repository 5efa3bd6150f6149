"""Steps on a GPU: one static step for each bucket, captured as a CUDA graph when it is first used."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from generator_svc.commands import StepOutput
from generator_svc.gpu.kernels import Kernels
from generator_svc.gpu.layout import Bucket, Place, bucket_of
from generator_svc.gpu.static_step import Outcome, StaticStep
from generator_svc.kv_cache import KVCache
from generator_svc.models.base import Seq2SeqModel
from generator_svc.steps import PlainStepper, Step, StepTask
from ragserve.errors import InternalError

MOST_STEPS = 64  # buckets whose buffers and graph are kept

Replay = Callable[[], None]
Capture = Callable[[Callable[[], None]], Replay]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SelectedStep:
    """One session's part of a pass whose candidates are on the host.

    What was not selected then (more candidates, or those of some hypotheses) is computed again by the plain stepper:
    the hypotheses still have their slots, and nothing of the vocabulary's size is kept for the sessions.
    """

    outcome: Outcome
    place: Place
    task: StepTask
    again: PlainStepper
    vocab_size: int

    def select(self, hypotheses: Sequence[int], n_candidates: int) -> StepOutput:
        """See `Step`."""
        rows, n_candidates = self.place.rows, min(n_candidates, self.vocab_size)
        if n_candidates > self.outcome.ids.shape[1] or list(hypotheses) != list(range(len(rows))):
            (step,) = self.again.run([self.task])
            return step.select(hypotheses, n_candidates)
        log_norms = self.outcome.log_norms[rows]
        if not np.isfinite(log_norms).all():
            raise InternalError("the model's logits hold NaN or infinity")
        first, n_docs = rows[:, 0], rows.shape[1]
        return StepOutput(
            token_ids=self.outcome.ids[first, :n_candidates],
            log_probs=self.outcome.log_probs[rows, :n_candidates],
            requested=tuple(self.outcome.requested[wanted].reshape(n_docs, -1) for wanted in self.place.requested),
            allowed_log_mass=self.outcome.mass[first],
            log_normalizers=log_norms,
        )


class StaticStepper:
    """See `Stepper`. `capture` turns a function over static buffers into its replay; None: every step runs eagerly.

    A bucket's first step runs eagerly and is captured for the next ones. Where the cache has moved to other memory,
    what was captured is dropped.
    """

    def __init__(
        self,
        model: Seq2SeqModel,
        cache: KVCache,
        kernels: Kernels,
        plain: PlainStepper,
        capture: Capture | None = None,
    ) -> None:
        self._model, self._cache, self._kernels, self._plain = model, cache, kernels, plain
        self._capture = capture
        self._steps: OrderedDict[Bucket, StaticStep] = OrderedDict()
        self._replays: dict[Bucket, Replay] = {}
        self._captured_at = cache.moves

    def without_graphs(self) -> StaticStepper:
        """The same steps, every one run eagerly."""
        return StaticStepper(self._model, self._cache, self._kernels, self._plain)

    def run(self, tasks: Sequence[StepTask]) -> list[Step]:
        """See `Stepper`."""
        bucket = bucket_of(tasks)
        if bucket is None:
            return self._plain.run(tasks)
        step = self._step(bucket)
        places, documents = step.write(tasks)
        self._kernels.expect(documents)
        self._compute(bucket, step)
        outcome = step.read()
        return [
            SelectedStep(outcome, place, task, self._plain, self._model.shape.vocab_size)
            for place, task in zip(places, tasks, strict=True)
        ]

    def _step(self, bucket: Bucket) -> StaticStep:
        if self._captured_at != self._cache.moves:
            self._replays.clear()
            self._captured_at = self._cache.moves
        if bucket not in self._steps:
            self._steps[bucket] = StaticStep(self._model, self._cache, self._kernels, bucket)
        self._steps.move_to_end(bucket)
        while len(self._steps) > MOST_STEPS:
            oldest, _ = self._steps.popitem(last=False)
            self._replays.pop(oldest, None)
        return self._steps[bucket]

    def _compute(self, bucket: Bucket, step: StaticStep) -> None:
        replay = self._replays.get(bucket)
        if replay is not None:
            replay()
            return
        step.compute()
        if self._capture is not None:
            self._replays[bucket] = self._captured(self._capture, step)

    def _captured(self, capture: Capture, step: StaticStep) -> Replay:
        try:
            return capture(step.compute)
        except RuntimeError:  # torch.OutOfMemoryError is one
            log.exception("a step could not be captured: it runs without a graph")
            return step.compute
