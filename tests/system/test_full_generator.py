"""A generator that refuses most sessions: callers get answers, or learn that it is full and when to come back."""

from __future__ import annotations

import asyncio
from collections import Counter

import grpc.aio

from bench.processes import running
from ragserve.errors import RagserveError
from ragserve.serving.status import error_from_rpc
from ragserve.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from tests.system.harness import Launcher, Stack, scrape

CLIENTS, SECONDS, AT_WORK = 60, 4.0, 4


async def outcomes(target: str) -> list[RagserveError | None]:
    """What calls of many clients at a time end with; None: an answer."""
    request = orchestrator_pb2.GenerateRequest(
        question="who was born in 1960?", n_docs=2, options=orchestrator_pb2.GenerationOptions(max_length=6)
    )
    found: list[RagserveError | None] = []
    async with grpc.aio.insecure_channel(target) as channel:
        stub = orchestrator_pb2_grpc.RagServiceStub(channel)
        end = asyncio.get_running_loop().time() + SECONDS

        async def call_on() -> None:
            while asyncio.get_running_loop().time() < end:
                try:
                    await stub.Generate(request, timeout=30)
                    found.append(None)
                except grpc.aio.AioRpcError as error:
                    found.append(error_from_rpc(error))

        async with asyncio.TaskGroup() as group:
            for _ in range(CLIENTS):
                group.create_task(call_on())
    return found


def test_refused_sessions_keep_their_status(stack: Stack, launcher: Launcher) -> None:
    generators = [launcher.generator(server__max_in_flight=AT_WORK) for _ in range(2)]
    targets = [generator.target for generator in generators]
    orchestrators = [launcher.orchestrator(stack.retriever.target, targets[:count]) for count in (1, 2)]
    with running(*generators, *orchestrators):
        for orchestrator in orchestrators:
            found = asyncio.run(outcomes(orchestrator.target))
            kinds = Counter(type(error).__name__ for error in found)
            assert kinds.keys() == {"NoneType", "ResourceExhaustedError"}, kinds
            assert all(error.retry_after_seconds for error in found if error is not None)
            assert "Traceback" not in orchestrator.log_text()
            assert scrape(orchestrator)["ragserve_failovers_total"] == 0
        assert all("Traceback" not in generator.log_text() for generator in generators)
