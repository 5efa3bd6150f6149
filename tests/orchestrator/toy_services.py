"""Retriever and generator of toy distributions on real gRPC ports, and an orchestrator in front of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import numpy as np

from orchestrator.downstream.clients import Downstream
from orchestrator.pipeline import Pipeline
from orchestrator.search.inference import Control, Step
from orchestrator.servicer import SERVICE_NAME, RagServicer
from orchestrator.settings import OrchestratorSettings
from ragserve.errors import InvalidInputError, NotFoundError, RagserveError, ResourceExhaustedError
from ragserve.serving.channel import MAX_MESSAGE_BYTES
from ragserve.serving.metrics import Metrics
from ragserve.serving.server import Server
from ragserve.serving.settings import ServerSettings
from ragserve.serving.status import status_of
from ragserve.v1 import (
    common_pb2,
    generator_pb2,
    generator_pb2_grpc,
    orchestrator_pb2_grpc,
    retriever_pb2,
    retriever_pb2_grpc,
)
from tests.orchestrator.toy import Hypothesis, PrunedSession, Toy

VOCAB, PASSAGES, VERSION = 60, 6, 7


@dataclass
class Faults:
    """`beams`: those that the checkpoint asks for.

    `kill_at`: the number of the request, over all generators, whose server dies instead of answering.

    `guesses`: tokens that the generator guesses to be the answer's.
    `full`: the replicas that have no room for a session; `retry_after_seconds` is what they say of it, those in
    `full_at_once` before they have read anything.
    """

    beams: int | None = None
    kill_at: int = 0
    guesses: tuple[int, ...] = ()
    full: frozenset[int] = frozenset()
    full_at_once: frozenset[int] = frozenset()
    retry_after_seconds: float | None = 0.5
    opened: list[int] = field(default_factory=list)  # the replica of each Open
    requests: int = 0
    killed: int = 0
    widened: list[int] = field(default_factory=list)  # the rows of each Widen
    ended: list[str] = field(default_factory=list)
    slow_seconds: float = 0.0
    dying: asyncio.Task[None] | None = None

    def no_room(self) -> ResourceExhaustedError:
        return ResourceExhaustedError("no room", retry_after_seconds=self.retry_after_seconds)


async def refuse(context: Any, error: RagserveError) -> None:
    status = status_of(error)
    await context.abort(status.code, status.text, status.trailing_metadata)


class ToyRetriever(retriever_pb2_grpc.RetrieverServiceServicer):
    async def Retrieve(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.k > PASSAGES:
            await refuse(context, InvalidInputError("k", f"k is {request.k}; it must be at most {PASSAGES}"))
        if request.knowledge_version not in (0, VERSION):
            await refuse(context, NotFoundError("no such version", field="knowledge_version"))
        if request.options.nprobe:
            await refuse(context, InvalidInputError("nprobe", "nprobe has no meaning for an index of factory 'Flat'"))
        for number, condition in enumerate(request.options.filter):
            if condition.key != "number":
                field = f"options.filter[{number}].key"
                await refuse(context, InvalidInputError(field, f"{field} is {condition.key!r}; toys have a number"))
        wanted = [condition.any_of.values for condition in request.options.filter]
        found = [i for i in range(PASSAGES) if all(str(i) in values for values in wanted)][: request.k]
        prior = np.log(np.arange(len(found), 0, -1) / np.arange(1, len(found) + 1).sum())
        passages = [
            common_pb2.ScoredPassage(
                passage=common_pb2.Passage(id=f"p{i}", title=f"T{i}", text=f"text {i}"), score=-i, log_prior=log_prior
            )
            for i, log_prior in zip(found, prior, strict=True)
        ]
        result = retriever_pb2.QueryResult(passages=passages, decoded_query=request.queries[0].text.lower())
        timings = [common_pb2.StageTiming(stage="encode", seconds=1e-4, count=1)]
        return retriever_pb2.RetrieverServiceRetrieveResponse(
            results=[result], knowledge_version=VERSION, timings=timings
        )

    async def GetInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        return retriever_pb2.RetrieverServiceGetInfoResponse(knowledge_version=VERSION, passages=PASSAGES)


class ToyGenerator(generator_pb2_grpc.GeneratorServiceServicer):
    def __init__(self, toy: Toy, faults: Faults, trained_mode: int, number: int) -> None:
        self.number = number
        self.toy, self.faults, self.trained_mode = toy, faults, trained_mode
        self.server: grpc.aio.Server | None = None

    async def GetInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        return generator_pb2.GeneratorServiceGetInfoResponse(
            vocab_size=VOCAB,
            trained_mode=self.trained_mode,
            decoder_start_token_id=0,
            eos_token_ids=[1],
            max_target_tokens=40,
            max_context_tokens=256,
            max_documents=20,
            max_hypotheses=200,
            defaults=generator_pb2.GenerationDefaults(
                n_docs=4, max_length=9, early_stopping="False", num_beams=self.faults.beams
            ),
        )

    async def Decode(self, requests: Any, context: Any) -> Any:  # noqa: N802
        session: PrunedSession | None = None
        try:
            if self.number in self.faults.full_at_once:
                await refuse(context, self.faults.no_room())
            async for request in requests:
                self.faults.requests += 1
                if self.faults.requests == self.faults.kill_at:
                    self.faults.killed += 1
                    assert self.server is not None
                    self.faults.dying = asyncio.create_task(self.server.stop(None))
                    await asyncio.sleep(10)
                await asyncio.sleep(self.faults.slow_seconds)
                if request.HasField("widen"):
                    self.faults.widened.append(len(request.widen.hypotheses))
                if request.HasField("open"):
                    self.faults.opened.append(self.number)
                    if self.number in self.faults.full:
                        await refuse(context, self.faults.no_room())
                    session = opened(self.toy, request.open)
                yield await answered(session, request, self.faults.guesses)
            self.faults.ended.append("done")
        except asyncio.CancelledError:
            self.faults.ended.append("cancelled")
            raise


def opened(toy: Toy, request: Any) -> PrunedSession:
    prior = np.array([one.log_prior for one in request.documents])
    session = PrunedSession(toy, prior, request.mode == common_pb2.MODE_SEQUENCE)
    count = len(prior) if session.sequence_mode else 1
    session.hypotheses = [
        Hypothesis(tuple(one.token_ids), one.document, control_of(one.control)) for one in request.prefixes
    ] or [Hypothesis((), document, control_of(request.control)) for document in range(count)]
    return session


def control_of(control: Any) -> Control:
    return Control(tuple(control.banned), tuple(control.requested))


async def answered(session: PrunedSession | None, request: Any, guesses: tuple[int, ...]) -> Any:
    assert session is not None
    timings = [common_pb2.StageTiming(stage="decode_step", seconds=1e-4, count=1)]
    match request.WhichOneof("request"):
        case "open":
            step = None
            if not request.open.encode_only:
                step = session._step(range(len(session.hypotheses)), request.open.candidates)
            opened_step = step_to_proto(step) if step else None
            return generator_pb2.DecodeResponse(open=generator_pb2.OpenResult(step=opened_step), timings=timings)
        case "advance":
            parents = session.hypotheses
            session.hypotheses = [
                Hypothesis((*parents[h.parent].tokens, h.token), parents[h.parent].document, control_of(h.control))
                for h in request.advance.hypotheses
            ]
            (*_, last) = session.hypotheses
            drafted = guesses[len(last.tokens) :][: request.advance.max_drafts][:3]
            for token in drafted:
                last = Hypothesis((*last.tokens, token), last.document, last.control)
                session.hypotheses.append(last)
            step = session._step(range(len(session.hypotheses)), request.advance.candidates)
            result = step_to_proto(step)
            result.drafted.extend(drafted)
            return generator_pb2.DecodeResponse(step=result, timings=timings)
        case "widen":
            step = session._step(list(request.widen.hypotheses), request.widen.candidates)
            return generator_pb2.DecodeResponse(step=step_to_proto(step), timings=timings)
        case "score":
            targets = [list(t.tokens.token_ids) if t.HasField("tokens") else t.text for t in request.score.targets]
            scores = [
                generator_pb2.TargetScore(token_ids=one.token_ids, log_probs=one.log_probs.astype("<f4").tobytes())
                for one in await session.score(targets)
            ]
            return generator_pb2.DecodeResponse(score=generator_pb2.ScoreResult(scores=scores), timings=timings)
        case "render":
            rendered = [
                generator_pb2.RenderedSequence(text=one.text, pieces=one.pieces)
                for one in await session.render([list(s.token_ids) for s in request.render.sequences])
            ]
            return generator_pb2.DecodeResponse(render=generator_pb2.RenderResult(sequences=rendered), timings=timings)


def step_to_proto(step: Step) -> generator_pb2.StepResult:
    return generator_pb2.StepResult(
        token_ids=step.token_ids.astype("<i4").tobytes(),
        log_probs=step.log_probs.astype("<f4").tobytes(),
        requested_log_probs=b"".join(one.astype("<f4").tobytes() for one in step.requested_log_probs),
        allowed_log_mass=step.allowed_log_mass.astype("<f4").tobytes(),
        candidates=step.token_ids.shape[1],
        hypotheses=step.token_ids.shape[0],
        log_normalizers=step.log_normalizers.astype("<f4").tobytes(),
    )


@dataclass(frozen=True)
class World:
    """A running orchestrator and what is behind it."""

    stub: orchestrator_pb2_grpc.RagServiceStub
    metrics: Metrics
    faults: Faults
    generators: Sequence[grpc.aio.Server]
    target: str

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(name, labels) or 0.0


async def started(servicers: Sequence[ToyGenerator]) -> tuple[list[grpc.aio.Server], list[int]]:
    """Each on a server of its own; the servers and their ports."""
    servers, ports = [], []
    for servicer in servicers:
        server = servicer.server = grpc.aio.server()
        generator_pb2_grpc.add_GeneratorServiceServicer_to_server(servicer, server)
        ports.append(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        servers.append(server)
    return servers, ports


@asynccontextmanager
async def orchestrator(settings: OrchestratorSettings, metrics: Metrics) -> AsyncIterator[str]:
    """A real orchestrator on a port of its own; its target."""
    downstream = Downstream(settings, metrics)
    servicer = RagServicer(Pipeline(downstream.retriever, downstream.generator, settings, metrics), 60.0)
    server = Server(
        settings.server,
        name="orchestrator",
        service_names=[SERVICE_NAME],
        register=lambda made: orchestrator_pb2_grpc.add_RagServiceServicer_to_server(servicer, made),
        metrics=metrics,
    )
    await server.listen()
    await downstream.start()
    await server.set_serving()
    try:
        yield f"127.0.0.1:{server.port}"
    finally:
        await server.drain(0)
        await downstream.stop()


@asynccontextmanager
async def world(
    toy: Toy,
    *,
    replicas: int = 1,
    faults: Faults | None = None,
    trained_mode: int = 0,
    max_message_bytes: int = MAX_MESSAGE_BYTES,
    server: Mapping[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[World]:
    """Toy services and a real orchestrator in front of them, all on free ports of loopback."""
    faults = faults or Faults()
    generators, ports = await started([ToyGenerator(toy, faults, trained_mode, number) for number in range(replicas)])
    retriever = grpc.aio.server()
    retriever_pb2_grpc.add_RetrieverServiceServicer_to_server(ToyRetriever(), retriever)
    retriever_port = retriever.add_insecure_port("127.0.0.1:0")
    await retriever.start()
    chosen = OrchestratorSettings(
        server=ServerSettings(port=0, metrics_port=0, max_message_bytes=max_message_bytes, **(server or {})),
        retriever=f"127.0.0.1:{retriever_port}",
        generator="ipv4:" + ",".join(f"127.0.0.1:{port}" for port in ports),
        **{"candidates": 4, **settings},
    )
    metrics = Metrics()
    try:
        async with orchestrator(chosen, metrics) as target, grpc.aio.insecure_channel(target) as channel:
            yield World(orchestrator_pb2_grpc.RagServiceStub(channel), metrics, faults, generators, target)
    finally:
        if faults.dying is not None:
            await faults.dying
        for toy_server in (*generators, retriever):
            await toy_server.stop(None)
