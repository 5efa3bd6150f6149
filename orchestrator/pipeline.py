"""The life of a request: passages, a session of the generator, the search, the evidence."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, aclosing
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from orchestrator import validation
from orchestrator.deadline import Deadline
from orchestrator.marginal import log_normalize
from orchestrator.options import Resolved, mode_warnings, pair_warnings, resolve, resolve_mode
from orchestrator.outcome import Outcome, empty_warnings, score_outcome, sequence_outcome, token_outcome
from orchestrator.requests import (
    Answer,
    AnswerText,
    ContextOptions,
    Decoding,
    Event,
    Evidence,
    GenerateAsk,
    GeneratorInfo,
    Mode,
    Passage,
    QuestionForm,
    Retrieved,
    ScoreAsk,
    ScoredAnswer,
    Sources,
    TokenPosterior,
)
from orchestrator.search.decoder import Decoder
from orchestrator.search.inference import Inference, Rendered
from orchestrator.search.loop import Search, Widening
from orchestrator.search.ranker import rank_fast, rank_thorough
from orchestrator.search.room import Room
from orchestrator.search.rows import RowBuilder
from orchestrator.settings import OrchestratorSettings
from orchestrator.stages import MARGINALIZE, Stages
from orchestrator.streaming import TextStream
from orchestrator.truncation import Reading, truncation_warnings, unknown_warnings
from orchestrator.validation import DocCount
from ragserve.errors import InternalError
from ragserve.serving.metrics import Metrics

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SessionSpec:
    """What a decode session is opened with; how many hypotheses it will have, and new tokens, is 0 without a search."""

    question: str
    evidence: Evidence
    mode: Mode
    context: ContextOptions
    max_hypotheses: int = 0
    max_new_tokens: int = 0
    independent_hypotheses: bool = False  # sampled
    retrieved: bool = True  # the caller has not given the documents, so what the model cannot read of them is left out


class DecodeSession(Inference, Protocol):
    """A decode session of the generator."""

    reading: Reading  # once it is open


class Retriever(Protocol):
    """The retriever service."""

    async def retrieve(self, sources: Sources, n_docs: int, deadline: Deadline, stages: Stages) -> Evidence:
        """The passages of a question, by falling prior: `n_docs`, or those there are where fewer are found.

        Where `sources` has no number of documents, `n_docs` may be more than there are passages.

        Raises:
            NotFoundError: nothing is found; the message says why.
        """


class Generator(Protocol):
    """The generator service."""

    async def info(self, deadline: Deadline) -> GeneratorInfo:
        """What is loaded."""

    def session(
        self, spec: SessionSpec, deadline: Deadline, stages: Stages
    ) -> AbstractAsyncContextManager[DecodeSession]:
        """A decode session, which ends with the block."""


class Pipeline:
    """Answers requests with a retriever and a generator."""

    def __init__(
        self, retriever: Retriever, generator: Generator, settings: OrchestratorSettings, metrics: Metrics
    ) -> None:
        self._retriever = retriever
        self._generator = generator
        self._settings = settings
        self._metrics = metrics
        self._warned: set[str] = set()
        self._widenings = metrics.counter(
            "ragserve_widenings_total", "Rows of a step for which more candidates were asked, by reason.", ("reason",)
        )

    async def generate(self, ask: GenerateAsk, deadline: Deadline) -> Answer:
        """The answer alone."""
        async with aclosing(self._events(ask, deadline, streaming=False)) as events:
            async for event in events:
                if isinstance(event, Answer):
                    return event
        raise InternalError("a generation ended without an answer")

    async def generate_stream(self, ask: GenerateAsk, deadline: Deadline) -> AsyncGenerator[Event, None]:
        """Passages, tokens as they become final, and last the answer."""
        async with aclosing(self._events(ask, deadline, streaming=True)) as events:
            async for event in events:
                yield event

    async def score(self, ask: ScoreAsk, deadline: Deadline) -> ScoredAnswer:
        """The value of log p(answer|question)."""
        stages = Stages(self._metrics)
        try:
            validation.check_sources(ask.sources, self._settings)
            validation.check_text("answer", ask.answer, self._settings.max_answer_characters)
            info = await self._generator.info(deadline)
            validation.check_context(ask.context, ask.sources, info, "")
            docs = validation.resolve_n_docs(ask.sources, info, self._settings)
            evidence = await self._evidence(ask.sources, docs, deadline, stages)
            mode = resolve_mode(ask.mode, info)
            spec = _spec(ask.sources, evidence, mode, ask.context)
            async with self._generator.session(spec, deadline, stages) as session:
                (scored,) = await session.score([ask.answer])
                (rendered,) = await session.render([scored.token_ids])
            outcome, added = score_outcome(scored, evidence.log_prior, mode, info.bos_token_id)
            evidence = replace(_read(evidence, session), posterior=outcome.posterior(evidence.log_prior))
            warnings = self._warnings(mode, info, evidence, session, ask.context)
            stages.finish()
            pieces = tuple(rendered.pieces)
            return ScoredAnswer(outcome.log_prob, outcome.tokens, added, evidence, stages.timings(), warnings, pieces)
        finally:
            stages.finish()

    async def retrieve(self, sources: Sources, deadline: Deadline) -> Retrieved:
        """Passages and priors."""
        stages = Stages(self._metrics)
        try:
            validation.check_sources(sources, self._settings)
            if sources.n_docs is None:
                docs = validation.resolve_n_docs(sources, await self._generator.info(deadline), self._settings)
            else:
                docs = validation.DocCount(sources.n_docs, chosen=True)
            evidence = await self._evidence(sources, docs, deadline, stages)
            stages.finish()
            return Retrieved(evidence, stages.timings())
        finally:
            stages.finish()

    async def _events(self, ask: GenerateAsk, deadline: Deadline, *, streaming: bool) -> AsyncGenerator[Event, None]:
        stages = Stages(self._metrics)
        try:
            validation.check_sources(ask.sources, self._settings)
            info = await self._generator.info(deadline)
            validation.check_context(ask.context, ask.sources, info, "options.")
            docs = validation.resolve_n_docs(ask.sources, info, self._settings)
            options = resolve(ask, info, self._settings, docs.count if docs.chosen else 1)
            docs = validation.fit_hypotheses(docs, options, info)
            evidence = await self._evidence(ask.sources, docs, deadline, stages)
            if streaming:
                yield evidence
            run = _Run(ask, info, options, evidence, stages, streaming)
            hypotheses = options.hypotheses(len(evidence.passages))
            spec = _spec(ask.sources, evidence, options.mode, ask.context)
            sampled = options.sampling is not None
            spec = replace(
                spec,
                max_hypotheses=hypotheses,
                max_new_tokens=options.max_length - 1,
                independent_hypotheses=sampled,
            )
            async with (
                self._generator.session(spec, deadline, stages) as session,
                aclosing(self._decode(run, session)) as events,
            ):
                async for event in events:
                    if isinstance(event, Answer):
                        answer = event
                    else:
                        yield event
            yield answer
        finally:
            stages.finish()

    async def _decode(self, run: _Run, session: DecodeSession) -> AsyncGenerator[Event, None]:
        """Tokens as they become final, when streaming, and the answer."""
        groups = run.groups(self._settings.sampling_candidates)
        text = TextStream()
        async with aclosing(self._search(run, session, groups).run()) as steps:
            async for _ in steps:
                if run.options.mode is not Mode.TOKEN or not (run.streaming or run.stages.before_first_token):
                    continue
                settled = groups[0].settled()
                if settled:
                    run.stages.first_token()
                if run.streaming and text.has_new(settled):
                    (rendered,) = await session.render([settled])
                    yield text.advance(settled, rendered.text)
        outcomes = await run.outcomes(session, groups)
        run.stages.first_token()
        rendered_all = await session.render([one.tokens for one in outcomes])
        if run.streaming:
            last = text.advance(outcomes[0].tokens, rendered_all[0].text, last=True)
            if last.token_ids or last.text:
                yield last
        run = replace(run, evidence=_read(run.evidence, session))
        readable = not session.reading.unknown_characters
        empty = empty_warnings(outcomes[0].tokens, rendered_all[0].text, run.info.bos_token_id, readable=readable)
        warnings = self._warnings(run.options.mode, run.info, run.evidence, session, run.ask.context)
        warnings = (*warnings, *run.options.warnings, *empty)
        run.stages.finish()
        yield run.answer(outcomes, rendered_all, warnings)

    def _search(self, run: _Run, session: Inference, groups: list[Decoder]) -> Search:
        settings = self._settings
        sequence = run.options.mode is Mode.SEQUENCE
        builder = RowBuilder(
            log_prior=np.zeros(1) if sequence else run.evidence.log_prior,
            filters=run.options.filter_chain(run.info),
            vocab_size=run.info.vocab_size,
            on_logits=sequence and run.options.num_beams == 1,
        )
        room = Room(settings.server.max_message_bytes, builder.log_prior.size)
        widening = Widening(settings.candidates, settings.widen_factor, run.info.vocab_size, room, self._count_widening)
        return Search(session, groups, builder, widening, lambda: run.stages.measure(MARGINALIZE))

    def _count_widening(self, reason: str, rows: int) -> None:
        self._widenings.labels(reason).inc(rows)

    def _warnings(
        self, mode: Mode, info: GeneratorInfo, evidence: Evidence, session: DecodeSession, context: ContextOptions
    ) -> tuple[str, ...]:
        """For the caller; what holds for every request also once for the log."""
        warnings = (*mode_warnings(mode, info), *info.warnings, *pair_warnings(info, evidence.query_encoder))
        for text in warnings:
            if text not in self._warned:
                self._warned.add(text)
                log.warning(text)
        lengths = session.reading.lengths
        unread = (*unknown_warnings(evidence, lengths), *truncation_warnings(evidence, lengths, context.truncation))
        return (*warnings, *session.reading.question_warnings, *evidence.warnings, *unread)

    async def _evidence(self, sources: Sources, docs: DocCount, deadline: Deadline, stages: Stages) -> Evidence:
        """The caller's documents, or those of the retriever."""
        deadline.remaining()
        if sources.documents:
            return given_documents(sources)
        evidence = await self._retriever.retrieve(sources, docs.count, deadline, stages)
        return replace(evidence, warnings=docs.warnings + evidence.warnings)


@dataclass(frozen=True)
class _Run:
    """One generation."""

    ask: GenerateAsk
    info: GeneratorInfo
    options: Resolved
    evidence: Evidence
    stages: Stages
    streaming: bool

    def groups(self, sampling_candidates: int) -> list[Decoder]:
        """One decoder in token mode, one for each document in sequence mode."""
        count = 1 if self.options.mode is Mode.TOKEN else self.evidence.n_docs
        return [self.options.decoder(self.info, sampling_candidates) for _ in range(count)]

    async def outcomes(self, session: Inference, groups: list[Decoder]) -> list[Outcome]:
        """The answers, best first, no more than asked for."""
        prior, bos = self.evidence.log_prior, self.info.bos_token_id
        if self.options.mode is Mode.TOKEN:
            found = [token_outcome(one, prior) for one in groups[0].results()]
        elif self.options.decoding is Decoding.FAST:
            found = [sequence_outcome(one) for one in rank_fast(groups, prior, bos)]
        else:
            found = [sequence_outcome(one) for one in await rank_thorough(session, groups, prior, bos)]
        return found[: self.options.num_return_sequences]

    def answer(self, outcomes: list[Outcome], rendered: list[Rendered], warnings: tuple[str, ...]) -> Answer:
        """With the posteriors of the best."""
        best, prior = outcomes[0], self.evidence.log_prior
        tokens: tuple[TokenPosterior, ...] = ()
        if self.ask.token_posteriors:
            steps = zip(best.tokens, rendered[0].pieces, best.token_posteriors(prior), strict=True)
            tokens = tuple(TokenPosterior(token, piece, posterior) for token, piece, posterior in steps)
        return Answer(
            hypotheses=tuple(
                AnswerText(shown.text, one.log_prob, one.score, one.tokens)
                for one, shown in zip(outcomes, rendered, strict=True)
            ),
            evidence=replace(self.evidence, posterior=best.posterior(prior)),
            token_posteriors=tokens,
            timings=self.stages.timings(),
            warnings=warnings,
        )


def given_documents(sources: Sources) -> Evidence:
    """The caller's documents by falling prior, which is normalized."""
    numbers = sorted(range(len(sources.documents)), key=lambda number: -sources.documents[number].log_prior)
    documents = [sources.documents[number] for number in numbers]
    log_prior = log_normalize([one.log_prior for one in documents])
    return Evidence(
        passages=tuple(Passage("", one.title, one.text) for one in documents),
        scores=tuple(one.log_prior for one in documents),
        log_prior=log_prior.astype(np.float32).astype(np.float64),
        knowledge_version=0,
        numbers=tuple(numbers),
    )


def _read(evidence: Evidence, session: DecodeSession) -> Evidence:
    """The evidence with the number of tokens that were cut from each passage."""
    return replace(evidence, truncated_tokens=tuple(one.truncated_tokens for one in session.reading.lengths))


def _spec(sources: Sources, evidence: Evidence, mode: Mode, context: ContextOptions) -> SessionSpec:
    decoded = context.question_form is QuestionForm.DECODED
    question = evidence.decoded_question if decoded else sources.question
    return SessionSpec(question, evidence, mode, context, retrieved=not sources.documents)
