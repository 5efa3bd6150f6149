"""gRPC clients of the retriever (unary) and the generator (one stream is one decode session)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar

import grpc
import grpc.aio

from orchestrator.deadline import Deadline
from orchestrator.downstream import convert
from orchestrator.downstream.ahead import Ahead, may_draft
from orchestrator.downstream.fields import for_caller
from orchestrator.downstream.prefixes import Prefixes
from orchestrator.pipeline import SessionSpec
from orchestrator.requests import Evidence, GeneratorInfo, Mode, Sources
from orchestrator.search.inference import Control, Extension, Rendered, Step, TargetScore
from orchestrator.search.room import Room
from orchestrator.settings import OrchestratorSettings
from orchestrator.stages import GENERATOR, RETRIEVE, Stages
from orchestrator.truncation import Reading
from ragserve.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    RagserveError,
    ResourceExhaustedError,
    UnavailableError,
)
from ragserve.failures import GENERATOR as GENERATOR_SERVICE
from ragserve.failures import RETRIEVER as RETRIEVER_SERVICE
from ragserve.failures import Called, explained
from ragserve.serving.channel import channel
from ragserve.serving.convert import search_to_proto, timings_from_proto
from ragserve.serving.metrics import Metrics
from ragserve.serving.streams import ClientStream
from ragserve.v1 import generator_pb2, generator_pb2_grpc, retriever_pb2, retriever_pb2_grpc

FIRST_BACKOFF_SECONDS = 0.1
# How long a session that is over may take to say so before it is cancelled.
CLOSING_SECONDS = 5.0
# More are never of use: the generator's own limit is below.
MAX_DRAFTS = 64
RETRIEVER_NAME = RETRIEVER_SERVICE.name
GENERATOR_NAME = GENERATOR_SERVICE.name
REASON_SECONDS = 2.0  # to learn why a service did not answer in time

log = logging.getLogger(__name__)

T = TypeVar("T")
DecodeStream = ClientStream[generator_pb2.DecodeRequest, generator_pb2.DecodeResponse]


class RetrieverClient:
    """The retriever; replicas that are gone are tried again by the channel."""

    def __init__(self, target: str, settings: OrchestratorSettings) -> None:
        self._channel = channel(
            target,
            max_message_bytes=settings.server.max_message_bytes,
            retried_methods=(f"/{RETRIEVER_NAME}/Retrieve", f"/{RETRIEVER_NAME}/GetInfo"),
            max_attempts=settings.max_attempts,
            health_service=RETRIEVER_NAME,
        )
        self._stub = retriever_pb2_grpc.RetrieverServiceStub(self._channel)
        self._called = Called(RETRIEVER_SERVICE, target)

    async def retrieve(self, sources: Sources, n_docs: int, deadline: Deadline, stages: Stages) -> Evidence:
        """The passages of a question. Raises the retriever's errors, with the caller's names for the fields."""
        request = retriever_pb2.RetrieverServiceRetrieveRequest(
            queries=[retriever_pb2.Query(text=sources.question)],
            k=n_docs,
            knowledge_version=sources.knowledge_version,
            options=search_to_proto(sources.search),
            allow_fewer=sources.n_docs is None,
        )
        started = time.monotonic()
        response = await _raising(self._stub.Retrieve(request, timeout=deadline.remaining()), self._called)
        stages.called(RETRIEVE, time.monotonic() - started, timings_from_proto(response.timings))
        return convert.evidence_from_proto(response, sources.search)

    async def ready(self, timeout_seconds: float) -> None:
        """Returns when a replica answers. Raises when none does in time."""
        await _ready(self._stub.GetInfo, retriever_pb2.RetrieverServiceGetInfoRequest(), timeout_seconds, self._called)

    async def close(self) -> None:
        """Closes the connections."""
        await self._channel.close()


class GeneratorClient:
    """The generator: its state, kept for a while, and decode sessions."""

    def __init__(self, target: str, settings: OrchestratorSettings, metrics: Metrics) -> None:
        self._channel = channel(
            target,
            max_message_bytes=settings.server.max_message_bytes,
            retried_methods=(f"/{GENERATOR_NAME}/GetInfo",),
            max_attempts=settings.max_attempts,
            health_service=GENERATOR_NAME,
        )
        self._stub = generator_pb2_grpc.GeneratorServiceStub(self._channel)
        self.called = Called(GENERATOR_SERVICE, target)
        self._settings = settings
        self.max_message_bytes = settings.server.max_message_bytes
        self._info: GeneratorInfo | None = None
        self._info_until = 0.0
        self._closing: set[asyncio.Task[None]] = set()
        self.failovers = metrics.counter(
            "ragserve_failovers_total", "Sessions of the generator opened again because their replica was gone."
        )
        self.passed_over = metrics.counter(
            "ragserve_full_replicas_total",
            "Times that a replica of the generator was full and another was asked to open the session.",
        )
        self.drafted = metrics.counter("ragserve_drafted_tokens_total", "Tokens that the generator guessed ahead.")
        self.accepted = metrics.counter(
            "ragserve_accepted_tokens_total", "Guessed tokens that the search then chose, each a step less."
        )

    async def info(self, deadline: Deadline) -> GeneratorInfo:
        """What is loaded; asked again when it is old, or when a replica was gone."""
        if self._info is None or time.monotonic() > self._info_until:
            request = generator_pb2.GeneratorServiceGetInfoRequest()
            response = await _raising(self._stub.GetInfo(request, timeout=deadline.remaining()), self.called)
            self._info = convert.info_from_proto(response)
            self._info_until = time.monotonic() + self._settings.info_max_age_seconds
        return self._info

    async def ready(self, timeout_seconds: float) -> None:
        """Returns when a replica answers. Raises when none does in time."""
        await _ready(self._stub.GetInfo, generator_pb2.GeneratorServiceGetInfoRequest(), timeout_seconds, self.called)

    def session(self, spec: SessionSpec, deadline: Deadline, stages: Stages) -> GeneratorSession:
        """A session, which frees the generator's when the block ends."""
        return GeneratorSession(self, spec, deadline, stages, self._settings.max_attempts)

    def start_stream(self, deadline: Deadline) -> DecodeStream:
        """A new stream, to the next replica that is connected."""
        return ClientStream(self._stub.Decode(timeout=deadline.remaining()))

    def lost_replica(self) -> None:
        """Another replica may have something else loaded."""
        self._info = None

    def finish(self, call: DecodeStream) -> None:
        """Ends a session in the background: the answer need not wait for the farewell."""
        task = asyncio.create_task(call.end(CLOSING_SECONDS))
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Closes the connections."""
        await asyncio.gather(*self._closing)
        await self._channel.close()


class GeneratorSession:
    """A decode session that survives its replica: it is opened again with the prefixes of its present step.

    It opens on first use. Not opened by `open`, it only encodes, for `score` and `render`.
    """

    def __init__(
        self, client: GeneratorClient, spec: SessionSpec, deadline: Deadline, stages: Stages, max_attempts: int
    ) -> None:
        self._client = client
        self._spec = spec
        self._deadline = deadline
        self._stages = stages
        self._max_attempts = max_attempts
        self._call: DecodeStream | None = None
        self._prefixes: Prefixes | None = None
        self._ahead: Ahead | None = None
        self._n_docs = spec.evidence.n_docs
        self._step_docs = self._n_docs if spec.mode is Mode.TOKEN else 1
        self._room = Room(client.max_message_bytes, self._step_docs)
        self.reading = Reading()  # once it is open

    async def __aenter__(self) -> GeneratorSession:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        call, self._call = self._call, None
        if call is not None and kind is None:
            self._client.finish(call)
        elif call is not None:
            call.cancel()

    async def open(self, control: Control, candidates: int) -> Step:
        """Encode and run the first step."""
        documents = [0] if self._spec.mode is Mode.TOKEN else range(self._n_docs)
        self._prefixes = Prefixes(documents, control, candidates)
        return self._step((await self._retried(self._start)).open.step)

    async def advance(self, extensions: Sequence[Extension], candidates: int) -> Step:
        """Extend hypotheses; where the replica is gone, another one starts with the extended ones."""
        if self._prefixes is None:
            raise ValueError("advance before open")
        self._prefixes.extend(extensions, candidates)
        followed = self._ahead.follow(extensions) if self._ahead is not None else None
        if followed is not None:
            self._ahead = followed
            self._client.accepted.inc()
            return followed.row()
        max_drafts = 0
        if self._spec.mode is Mode.TOKEN and may_draft(extensions):
            max_drafts = min(MAX_DRAFTS, self._room.rows(candidates) - 1)

        async def attempt() -> generator_pb2.StepResult:
            if self._call is None:
                return (await self._start()).open.step
            position = self._position
            request = convert.advance_to_proto(extensions, candidates, position=position, max_drafts=max_drafts)
            return (await self._exchange(request)).step

        step = await self._retried(attempt)
        self._ahead = None
        return self._with_drafts(step, extensions[0].control) if step.drafted else self._step(step)

    async def widen(self, rows: Sequence[int], candidates: int) -> Step:
        """More candidates for some rows."""
        response = await self._ask(lambda: convert.widen_to_proto([self._position + row for row in rows], candidates))
        return self._step(response.step, rows)

    async def score(self, targets: Sequence[Sequence[int] | str]) -> list[TargetScore]:
        """Score targets under every document."""
        response = await self._ask(lambda: convert.score_to_proto(targets))
        return convert.scores_from_proto(response.score, self._n_docs)

    async def render(self, sequences: Sequence[Sequence[int]]) -> list[Rendered]:
        """Text of sequences."""
        response = await self._ask(lambda: convert.render_to_proto(sequences))
        return convert.rendered_from_proto(response.render)

    def _step(self, step: generator_pb2.StepResult, rows: Sequence[int] | None = None) -> Step:
        requested = self._prefixes.requested(rows) if self._prefixes else []
        return convert.step_from_proto(step, self._step_docs, requested)

    @property
    def _position(self) -> int:
        """The search's row 0 among the rows of the generator's step."""
        return 0 if self._ahead is None else self._ahead.position

    def _with_drafts(self, step: generator_pb2.StepResult, control: Control) -> Step:
        drafted = tuple(step.drafted)
        whole = convert.step_from_proto(step, self._step_docs, [len(control.requested)] * (1 + len(drafted)))
        self._ahead = Ahead(whole, drafted, control)
        self._client.drafted.inc(len(drafted))
        return self._ahead.row()

    async def _ask(self, request: Callable[[], generator_pb2.DecodeRequest]) -> generator_pb2.DecodeResponse:
        """One exchange, on a stream that stands at the present step."""

        async def attempt() -> generator_pb2.DecodeResponse:
            if self._call is None:
                await self._start()
            return await self._exchange(request())

        return await self._retried(attempt)

    async def _retried(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Again on another replica while they are gone, a bounded number of times."""
        for number in range(1, self._max_attempts):
            try:
                return await attempt()
            except UnavailableError as error:
                log.warning("a generator replica is gone, trying another: %s", error)
                self._client.failovers.inc()
                await asyncio.sleep(FIRST_BACKOFF_SECONDS * 2 ** (number - 1))
        return await attempt()

    async def _start(self) -> generator_pb2.DecodeResponse:
        """Open a stream at the present step, on another replica where one is full."""
        try:
            return await self._open_on(self._client.start_stream(self._deadline))
        except ResourceExhaustedError as error:
            # Without a time to come back it is the request that is too large, for every replica.
            if error.retry_after_seconds is None:
                raise
            return await self._start_elsewhere(error)

    async def _start_elsewhere(self, full: ResourceExhaustedError) -> generator_pb2.DecodeResponse:
        """Raises the last replica's error when all that are asked are full.

        The streams are all started at once: so the round robin leads each to another replica. Started one after the
        other, with other sessions' streams between them, they would often come to the full one again.
        """
        calls = list[DecodeStream]()
        try:
            while len(calls) < self._max_attempts - 1:
                calls.append(self._client.start_stream(self._deadline))
            for call in calls:
                log.info("a generator replica is full, trying another: %s", full)
                self._client.passed_over.inc()
                try:
                    return await self._open_on(call)
                except ResourceExhaustedError as error:
                    full = error
            raise full
        finally:
            for call in calls:
                if call is not self._call:
                    call.cancel()

    async def _open_on(self, call: DecodeStream) -> generator_pb2.DecodeResponse:
        self._call, self._ahead = call, None
        response = await self._exchange(convert.open_to_proto(self._spec, self._prefixes))
        self.reading = convert.reading_from_proto(response.open)
        return response

    async def _exchange(self, request: generator_pb2.DecodeRequest) -> generator_pb2.DecodeResponse:
        """One request and its response. On any error the stream is given up."""
        if self._call is None:
            raise ValueError("the session has ended")
        started = time.monotonic()
        try:
            response = await _next_response(self._call, request, self._client.called)
        except RagserveError as error:
            self._call.cancel()
            self._call = None
            if isinstance(error, UnavailableError):
                self._client.lost_replica()
            raise
        self._stages.called(GENERATOR, time.monotonic() - started, timings_from_proto(response.timings))
        return response


class Downstream:
    """Both services; as the server's Service it waits for them at the start."""

    def __init__(self, settings: OrchestratorSettings, metrics: Metrics) -> None:
        self._settings = settings
        self.retriever = RetrieverClient(settings.retriever, settings)
        self.generator = GeneratorClient(settings.generator, settings, metrics)

    async def start(self) -> None:
        """Wait until both answer, but not for ever: they may come later."""
        wait = self._settings.startup_wait_seconds
        names = ("retriever", "generator")
        ready = await asyncio.gather(self.retriever.ready(wait), self.generator.ready(wait), return_exceptions=True)
        for name, outcome in zip(names, ready, strict=True):
            if isinstance(outcome, RagserveError):
                log.warning("the %s does not answer yet: %s", name, outcome)
            elif outcome is not None:
                raise outcome

    async def stop(self) -> None:
        """Close the connections."""
        await asyncio.gather(self.retriever.close(), self.generator.close())


async def _raising(call: Awaitable[T], called: Called) -> T:
    """The response of a unary call. Raises the error that its status stands for."""
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        raise _error(error, called) from error


async def _ready(get_info: Callable[..., Awaitable[Any]], request: Any, timeout_seconds: float, called: Called) -> None:
    """Waits for a replica. Raises the reason why none answered in time."""
    try:
        await _raising(get_info(request, timeout=timeout_seconds, wait_for_ready=True), called)
    except DeadlineExceededError:
        await _raising(get_info(request, timeout=REASON_SECONDS), called)


def _error(error: grpc.RpcError, called: Called) -> RagserveError:
    found = explained(error, called)
    if found.field == "target":  # which the orchestrator's operator sets, and not the caller
        found = FailedPreconditionError(found.message, field=called.service.role)
    return for_caller(found)


async def _next_response(
    call: DecodeStream, request: generator_pb2.DecodeRequest, called: Called
) -> generator_pb2.DecodeResponse:
    """The response to a request. Raises the stream's error where it ended, UnavailableError where it ended without."""
    try:
        response = await call.exchange(request)
    except grpc.aio.AioRpcError as error:
        raise _error(error, called) from error
    except asyncio.InvalidStateError as error:
        raise UnavailableError("the generator's session is over") from error
    except asyncio.CancelledError as error:
        # grpc raises this too when the server cancelled the stream.
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise UnavailableError("the generator cancelled the session") from error
    if response is None:
        raise UnavailableError("the generator ended the session")
    return response
