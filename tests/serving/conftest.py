from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio
import pytest

from ragserve.serving.channel import channel
from ragserve.serving.metrics import Metrics
from ragserve.serving.server import Server
from ragserve.v1 import generator_pb2_grpc, retriever_pb2, retriever_pb2_grpc
from tests.serving.echo import SERVICE_NAMES, Echo, settings


@dataclass
class Running:
    """A server in this process, listening, and a channel to it."""

    server: Server
    echo: Echo
    metrics: Metrics
    channel: grpc.aio.Channel

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.server.port}"

    @property
    def generator(self) -> Any:
        return generator_pb2_grpc.GeneratorServiceStub(self.channel)

    def retrieve(self, text: str, **keywords: Any) -> Any:
        request = retriever_pb2.RetrieverServiceRetrieveRequest(queries=[retriever_pb2.Query(text=text)])
        return retriever_pb2_grpc.RetrieverServiceStub(self.channel).Retrieve(request, **keywords)


async def until(true: Callable[[], object], seconds: float = 30) -> None:
    """Waits until the condition holds."""
    async with asyncio.timeout(seconds):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


@pytest.fixture
async def loading(request: pytest.FixtureRequest) -> AsyncIterator[Running]:
    """Listening, not yet serving. Settings by indirect parameter."""
    echo, metrics = Echo(), Metrics()
    server = Server(
        settings(**getattr(request, "param", {})),
        name="echo",
        service_names=SERVICE_NAMES,
        register=echo.register,
        metrics=metrics,
    )
    await server.listen()
    async with channel(f"127.0.0.1:{server.port}") as to_server:
        yield Running(server, echo, metrics, to_server)
    await server.drain(0)


@pytest.fixture
async def running(loading: Running) -> Running:
    await loading.server.set_serving()
    return loading
