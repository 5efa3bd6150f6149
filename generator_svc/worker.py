"""The thread that runs the model: schedule, run, post-process, until told to stop."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

import numpy as np
import numpy.typing as npt
import torch

from generator_svc.budget import RETRY_AFTER_SECONDS
from generator_svc.commands import StepControl
from generator_svc.drafting import Drafter
from generator_svc.metrics import GeneratorMetrics
from generator_svc.models.base import DocumentState
from generator_svc.runner import Runner, StepRows
from generator_svc.scheduler import Plan, Scheduler
from generator_svc.scoring import ScoreJob
from generator_svc.sessions import Session, Work
from generator_svc.steps import Step, Stepper, StepTask
from ragserve.errors import RagserveError, ResourceExhaustedError, UnavailableError

CRASHED = 1  # exit status
# When nobody waits for anything, the thread lets go of the interpreter's lock at once: the event loop has an answer to
# send. Only when nobody has asked for so long does it look for sessions that are late or idle.
SHORT_REST_SECONDS = 0.01

log = logging.getLogger(__name__)


@dataclass
class Request:
    """What one session waits for. `seconds` by stage, of the work done so far.

    `answer` is called once, in the worker's thread: with the result, which may be an exception.
    """

    answer: Callable[[object], None]
    submitted: float  # monotonic seconds
    hypotheses: tuple[int, ...] = ()  # of a widening
    candidates: int = 0
    job: ScoreJob | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    def spent(self, stage: str, seconds: float) -> None:
        """Account for work done."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds


@dataclass
class SessionState:
    """The engine's part of a session: tensors and the request in hand."""

    log_priors: npt.NDArray[np.float32] | None  # [n_docs]; token mode
    on_end: Callable[[RagserveError], None]
    controls: tuple[StepControl, ...] = ()
    step: Step | None = None
    drafter: Drafter | None = None
    request: Request | None = None


class Worker:
    """Owns the thread, the lock and the scheduler. Other threads touch the scheduler under `lock` only."""

    def __init__(self, runner: Runner, stepper: Stepper, scheduler: Scheduler, metrics: GeneratorMetrics) -> None:
        self.scheduler = scheduler
        self._metrics = metrics
        self.lock = threading.Lock()
        self._bell: SimpleQueue[None] = SimpleQueue()  # rung after changes; a condition takes three times as long
        self._runner = runner
        self._stepper = stepper
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="generator-worker", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the pass in hand; requests left are answered with UnavailableError."""
        self._stopping = True
        self.wake()
        self._thread.join()

    def wake(self) -> None:
        """Tell the thread that the scheduler has changed."""
        self._bell.put(None)

    def _run(self) -> None:
        try:
            with torch.inference_mode():
                while (plan := self._next_plan()) is not None:
                    self._execute(plan)
        except BaseException:
            # Without this thread every session would hang while health says SERVING: another replica takes over.
            log.critical("the worker thread failed: the process ends", exc_info=True)
            os._exit(CRASHED)
        for session in self.scheduler.sessions():
            _fail(session, UnavailableError("the generator is shutting down"))

    def _next_plan(self) -> Plan | None:
        """What to do next; waits for it. None when told to stop."""
        with self.lock:
            asked = self.scheduler.asked
        if not asked:
            self._rest(SHORT_REST_SECONDS)
        while not self._stopping:
            with self.lock:
                plan = self.scheduler.plan(time.monotonic())
                if not plan.empty:
                    return plan
                event = self.scheduler.next_event()
            self._rest(None if event is None else max(0.0, event - time.monotonic()))
        return None

    def _rest(self, seconds: float | None) -> None:
        """Until the bell rings, or for so long (None: however long that takes)."""
        with suppress(Empty):
            self._bell.get(timeout=seconds)
        while not self._bell.empty():
            self._bell.get()

    def _execute(self, plan: Plan) -> None:
        for document in plan.forget:
            document.state = None
        for session, error in plan.ended:
            _end(session, error)
        if not self._make_room(plan.n_slots):
            return  # what is left is planned again
        fed = [session for session in plan.start if session.prefix_trees][:1]  # one pass of prefixes a turn
        for session in plan.start:
            if session in fed or not session.prefix_trees:
                self._guard([session], lambda session=session: self._start(session))  # type: ignore[misc]
        self._guard(plan.prefill, lambda: self._encode(plan))
        for session in plan.widen:
            self._guard([session], lambda session=session: self._answer_step(session))  # type: ignore[misc]
        ready = [session for session in plan.step if session.work is Work.STEP]  # all that have started
        self._guard(ready, lambda: self._step(ready))
        if plan.score is not None:
            scored = plan.score
            self._guard([scored], lambda: self._score(scored))

    def _make_room(self, n_slots: int) -> bool:
        """Grow the cache. Where memory is short, the sessions that need the room end and the others go on."""
        cache = self._runner.cache
        try:
            cache.grow(n_slots)
        except (RuntimeError, MemoryError):  # torch.OutOfMemoryError is a RuntimeError
            log.exception("no memory for a cache of %d slots", n_slots)
            with self.lock:
                evicted = self.scheduler.evict(cache.n_slots)
            for session in evicted:
                message = "no memory is left for keys and values; if this happens often, lower cache_bytes"
                self._finish(session, ResourceExhaustedError(message, retry_after_seconds=RETRY_AFTER_SECONDS))
            return False
        return True

    def _guard(self, sessions: Sequence[Session], run: Callable[[], None]) -> None:
        """Run a pass; when it fails, so do the requests it was for, and nothing else."""
        if not sessions:
            return
        try:
            run()
        except Exception as error:
            log.exception("a pass over %d sessions failed", len(sessions))
            with self.lock:  # before anybody hears of it, who could ask again
                for session in sessions:
                    self.scheduler.fail(session)
            for session in sessions:
                self._finish(session, error)

    def _start(self, session: Session) -> None:
        started = time.monotonic()
        if session.prefix_trees:
            room = self.scheduler.capacity.prefill_tokens
            del session.prefix_trees[: self._runner.prime(_states(session), session.prefix_trees, room)]
        session.state.request.spent("prefill", time.monotonic() - started)
        if session.prefix_trees:
            return  # it goes on after others had their steps
        with self.lock:
            self.scheduler.started(session)
        if not session.starts:
            self._finish(session, None)

    def _encode(self, plan: Plan) -> None:
        started = time.monotonic()
        encoded = self._runner.encode([document.token_ids for document in plan.encode])
        for document, state in zip(plan.encode, encoded.documents, strict=True):
            document.state = state
        with self.lock:
            self.scheduler.encoded(plan.encode)
        seconds = time.monotonic() - started
        for session in plan.prefill:
            session.state.request.spent("prefill", seconds)
        self._metrics.encoded([document.n_tokens for document in plan.encode], encoded.positions)

    def _step(self, sessions: Sequence[Session]) -> None:
        started = time.monotonic()
        steps = self._stepper.run([_task(session) for session in sessions])
        seconds = time.monotonic() - started
        for session, step in zip(sessions, steps, strict=True):
            session.state.step = step
            session.state.request.spent("decode_step", seconds)
            self._guard([session], lambda session=session: self._answer_step(session))  # type: ignore[misc]

    def _answer_step(self, session: Session) -> None:
        state, request = session.state, session.state.request
        started = time.monotonic()
        hypotheses = request.hypotheses or range(len(state.controls))
        output = state.step.select(hypotheses, request.candidates)
        request.spent("select", time.monotonic() - started)
        self._finish(session, output)

    def _score(self, session: Session) -> None:
        state = session.state
        started = time.monotonic()
        state.request.job.run_chunk(self._runner, _states(session))
        state.request.spent("score", time.monotonic() - started)
        if state.request.job.done:
            self._finish(session, state.request.job.scores())

    def _finish(self, session: Session, result: object) -> None:
        """Answer the request in hand: with an exception, when the result is one."""
        request: Request | None = session.state.request
        if request is None or session.work is Work.NOTHING:
            return
        session.state.request = None
        now = time.monotonic()
        with self.lock:
            self.scheduler.finished(session, now)
        waited = now - request.submitted - sum(request.seconds.values())
        request.seconds = {"queue": max(0.0, waited), **request.seconds}
        request.answer(result)


def _task(session: Session) -> StepTask:
    state = session.state
    rows = StepRows(_states(session), tuple(session.hypotheses), session.shared)
    return StepTask(rows, state.controls, state.log_priors, state.request.candidates)


def _states(session: Session) -> tuple[DocumentState, ...]:
    return tuple(document.state for document in session.documents)


def _end(session: Session, error: RagserveError | None) -> None:
    """Let go of a freed session's tensors; tell its client why when it did not ask for it."""
    if error is not None:
        _fail(session, error)
    session.state.step = None


def _fail(session: Session, error: RagserveError) -> None:
    if session.state.request is not None:
        session.state.request.answer(error)
    session.state.on_end(error)
