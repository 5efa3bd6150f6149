"""One decode session as its client sees it: commands in, replies out, one at a time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from generator_svc.commands import (
    AdvanceCommand,
    Command,
    OpenCommand,
    OpenOutput,
    RenderCommand,
    RenderedSequence,
    Reply,
    ScoreCommand,
    StepControl,
    StepOutput,
    TargetScore,
    WidenCommand,
)
from generator_svc.contexts import Context, build_contexts, not_in_model
from generator_svc.drafting import Drafter
from generator_svc.loading import LoadedGenerator
from generator_svc.metrics import GeneratorMetrics
from generator_svc.scoring import plan_scores
from generator_svc.sessions import Session, Start, Work
from generator_svc.text import characters_in
from generator_svc.validation import (
    Limits,
    check_advance,
    check_open,
    check_render,
    check_score,
    check_scores,
    check_target,
    check_widen,
    most_rows,
)
from generator_svc.worker import Request, SessionState, Worker
from ragserve.errors import DeadlineExceededError, FailedPreconditionError, InvalidInputError, RagserveError
from ragserve.serving.metrics import StageTiming
from ragserve.token_rules import TokenRules

log = logging.getLogger(__name__)


class Asked(NamedTuple):
    """A request to the worker, and what its caller waits for."""

    request: Request
    answer: asyncio.Future[Any]


class DecodeSession:
    """Lives on one event loop; made by `GeneratorEngine.connect`.

    Every command raises InvalidInputError for bad input, FailedPreconditionError after the session's end,
    ResourceExhaustedError when there is no room, DeadlineExceededError and UnavailableError as they say.
    """

    def __init__(
        self, loaded: LoadedGenerator, limits: Limits, worker: Worker, metrics: GeneratorMetrics, deadline: float | None
    ) -> None:
        self._loaded = loaded
        self._limits = limits
        self._worker = worker
        self._metrics = metrics
        self._deadline = deadline
        self._loop = asyncio.get_running_loop()
        self._session: Session | None = None
        self.ended: asyncio.Future[RagserveError] = self._loop.create_future()
        self._patience = self._loop.call_later(worker.scheduler.capacity.idle_seconds, self._expect_open)

    async def handle(self, command: Command) -> Reply[Any]:
        """Answer any command."""
        match command:
            case OpenCommand():
                return await self.open(command)
            case AdvanceCommand():
                return await self.advance(command)
            case WidenCommand():
                return await self.widen(command)
            case ScoreCommand():
                return await self.score(command)
            case RenderCommand():
                return await self.render(command)

    async def open(self, command: OpenCommand) -> Reply[OpenOutput]:
        """Encode the documents and, unless told otherwise, run the first step."""
        if self._session is not None:
            raise InvalidInputError("open", "the session is open already")
        check_open(command, self._limits)
        request, answer = self._request(command.candidates)
        contexts, unknown = await asyncio.to_thread(self._contexts, command)
        request.spent("prefill", time.monotonic() - request.submitted)
        session = self._new_session(command, contexts)
        session.state.request = request
        if command.prefixes:
            await asyncio.to_thread(getattr, session, "beginnings")  # worked out once, and not on the loop
        with self._worker.lock:
            found = self._worker.scheduler.admit(session, time.monotonic())
            self._session = session
        self._worker.wake()
        self._metrics.opened(found, len(contexts) - found)
        step = await answer
        left_out = tuple(context.unknown_token for context in contexts)
        self._metrics.truncated(sum(context.truncated for context in contexts))
        output = OpenOutput(
            context_tokens=tuple(len(context.token_ids) for context in contexts),
            step=step,
            truncated_tokens=tuple(context.truncated_tokens for context in contexts),
            document_tokens=tuple(context.document_tokens for context in contexts),
            question_characters=characters_in(command.question),
            question_unknown_characters=unknown,
            unknown_tokens=left_out if any(left_out) else (),
        )
        return Reply(output, self._timings(request))

    async def advance(self, command: AdvanceCommand) -> Reply[StepOutput]:
        """Extend hypotheses by one token and run one step."""
        session = self._opened()
        lengths = [hypothesis.length for hypothesis in session.hypotheses]
        check_advance(command, lengths, session.docs_of_each, self._limits)
        choices = [(hypothesis.parent, hypothesis.token) for hypothesis in command.hypotheses]
        controls = tuple(hypothesis.control for hypothesis in command.hypotheses)
        drafted = self._drafted(session, command)

        def submit(now: float) -> None:
            nonlocal drafted
            drafted = drafted[: self._worker.scheduler.advance(session, choices, now, drafted)]
            session.state.controls = controls + controls[:1] * len(drafted)

        reply = await self._ask(session, self._request(command.candidates), submit)
        if session.state.drafter is not None:
            session.state.drafter.take(*choices[0], drafted)
        return replace(reply, output=replace(reply.output, drafted=drafted)) if drafted else reply

    async def widen(self, command: WidenCommand) -> Reply[StepOutput]:
        """More candidates of the present step, without running the model."""
        session = self._opened()
        check_widen(command, session.state.controls, session.docs_of_each, self._limits)
        asked = self._request(command.candidates)
        asked.request.hypotheses = command.hypotheses
        return await self._ask(session, asked, lambda now: self._demand(session, Work.WIDEN, now))

    async def score(self, command: ScoreCommand) -> Reply[tuple[TargetScore, ...]]:
        """Log-probabilities of targets under every document."""
        session = self._opened()
        check_score(command, self._limits)
        targets = await asyncio.to_thread(self._targets, command)
        check_scores(targets, len(session.contexts), self._limits)
        asked = self._request()
        start, max_rows = self._rules(session).decoder_start_token_id, self._worker.scheduler.capacity.prefill_tokens
        asked.request.job = await asyncio.to_thread(plan_scores, targets, len(session.contexts), start, max_rows)
        return await self._ask(session, asked, lambda now: self._demand(session, Work.SCORE, now))

    async def render(self, command: RenderCommand) -> Reply[tuple[RenderedSequence, ...]]:
        """Text of token sequences."""
        session = self._opened()
        check_render(command, self._limits)
        clock = self._metrics.clock()
        with clock.measure("render"):
            rendered = await asyncio.to_thread(lambda: tuple(map(self._loaded.codec.render, command.sequences)))
        with self._worker.lock:
            session.active = time.monotonic()
        return Reply(rendered, clock.timings())

    def close(self) -> None:
        """Free the session at the next step."""
        if self._session is not None:
            with self._worker.lock:
                self._worker.scheduler.close(self._session)
            self._worker.wake()
        self._patience.cancel()
        self.ended.cancel()

    def _drafted(self, session: Session, command: AdvanceCommand) -> tuple[int, ...]:
        """Tokens guessed to follow the only hypothesis of the next step."""
        drafter: Drafter | None = session.state.drafter
        if drafter is None:
            return ()
        if len(command.hypotheses) > 1:
            session.state.drafter = None  # a search with several hypotheses has begun
            return ()
        chosen = command.hypotheses[0]
        room = self._limits.max_target_tokens - session.hypotheses[chosen.parent].length - 1
        rows = most_rows(command.candidates, chosen.control, session.docs_of_each, self._limits)
        most = min(command.max_drafts, self._limits.max_drafts, room, rows - 1)
        return drafter.propose(chosen.parent, chosen.token, most) if most > 0 else ()

    def _opened(self) -> Session:
        if self._session is None:
            raise InvalidInputError("open", "the first request of a session must be Open")
        return self._session

    def _request(self, candidates: int = 0) -> Asked:
        """A request and its answer: a future of the loop, half the work of wrapping a thread's."""
        answer = self._loop.create_future()

        def settle(result: object) -> None:
            if answer.done():
                log.debug("the caller left before its answer")
            elif isinstance(result, BaseException):
                answer.set_exception(result)
            else:
                answer.set_result(result)

        def from_worker(result: object) -> None:
            self._loop.call_soon_threadsafe(settle, result)

        return Asked(Request(from_worker, time.monotonic(), candidates=candidates), answer)

    async def _ask(self, session: Session, asked: Asked, submit: Callable[[float], None]) -> Reply[Any]:
        with self._worker.lock:
            submit(time.monotonic())
            session.state.request = asked.request
        self._worker.wake()
        return Reply(await asked.answer, self._timings(asked.request))

    def _demand(self, session: Session, work: Work, now: float) -> None:
        if work is Work.WIDEN and session.state.step is None:
            raise FailedPreconditionError("the session was opened encode_only: there is no step to widen")
        self._worker.scheduler.request(session, work, now)

    def _timings(self, request: Request) -> tuple[StageTiming, ...]:
        """The histograms are told once the answer is on its way."""
        self._loop.call_soon(self._metrics.spent, request.seconds)
        return tuple(StageTiming(stage, seconds) for stage, seconds in request.seconds.items())

    def _contexts(self, command: OpenCommand) -> tuple[tuple[Context, ...], int]:
        """The contexts, and how many characters of the question are not in the vocabulary."""
        limit = self._limits.max_context_tokens
        wanted = command.max_context_tokens or min(self._loaded.rag.max_combined_length, limit)
        contexts = build_contexts(command, self._loaded.rag, self._loaded.codec, wanted, limit)
        return contexts, self._loaded.codec.unknown_characters(command.question)

    def _targets(self, command: ScoreCommand) -> list[tuple[int, ...]]:
        targets = []
        for i, target in enumerate(command.targets):
            if isinstance(target, str):
                target_ids = tuple(self._loaded.codec.encode_target(target))
                if (token := self._loaded.codec.unknown_token(target_ids)) is not None:
                    field = f"score.targets[{i}].text"
                    raise InvalidInputError(field, f"{field} {not_in_model(token)}")
                check_target(f"score.targets[{i}].text", target_ids, self._limits)
                targets.append(target_ids)
            else:
                targets.append(target)
        return targets

    def _new_session(self, command: OpenCommand, contexts: tuple[Context, ...]) -> Session:
        shared = command.mode == "token"
        starts, controls = _starts(command, self._loaded.tokens.rules(command.mode).decoder_start_token_id)
        priors = np.array([document.log_prior for document in command.documents], dtype=np.float32)
        state = SessionState(
            log_priors=priors if shared else None,
            on_end=self._on_end,
            controls=controls,
            drafter=self._drafter(contexts, starts) if shared else None,
        )
        return Session(
            contexts=tuple(context.token_ids for context in contexts),
            shared=shared,
            starts=starts,
            deadline=self._deadline,
            most_hypotheses=command.max_hypotheses if starts else 0,
            most_tokens=command.max_new_tokens + 1 if starts and command.max_new_tokens else 0,
            independent=command.independent_hypotheses,
            state=state,
        )

    def _drafter(self, contexts: Sequence[Context], starts: Sequence[Start]) -> Drafter | None:
        """For a search that begins with one hypothesis."""
        tokens, most = self._loaded.tokens, self._limits.max_drafts
        rules = tokens.token_rules
        if most == 0 or len(starts) != 1:
            return None
        ids = [context.token_ids for context in contexts]
        special = {*rules.eos_token_id, tokens.pad_token_id, rules.decoder_start_token_id, tokens.bos_token_id}
        return Drafter(ids, starts[0].tokens, most, special)

    def _rules(self, session: Session) -> TokenRules:
        return self._loaded.tokens.rules("token" if session.shared else "sequence")

    def _expect_open(self) -> None:
        if self._session is None and not self.ended.done():
            self.ended.set_result(DeadlineExceededError("no Open came in time (idle_seconds)"))

    def _on_end(self, error: RagserveError) -> None:
        """Called by the worker when it ends the session on its own."""

        def tell() -> None:
            if not self.ended.done():
                self.ended.set_result(error)

        self._loop.call_soon_threadsafe(tell)


def _starts(command: OpenCommand, start_token: int) -> tuple[tuple[Start, ...], tuple[StepControl, ...]]:
    """Hypotheses to start from, and their controls; none after encode_only."""
    if command.encode_only:
        return (), ()
    if command.prefixes:
        shared = command.mode == "token"
        starts = [
            Start((start_token, *prefix.token_ids), 0 if shared else prefix.document) for prefix in command.prefixes
        ]
        return tuple(starts), tuple(prefix.control for prefix in command.prefixes)
    documents = range(len(command.documents)) if command.mode == "sequence" else range(1)
    return tuple(Start((start_token,), i) for i in documents), (command.control,) * len(documents)
