from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

import ragserve
from ragserve.serving.metrics import Metrics
from ragserve.serving.server import Server
from ragserve.serving.settings import ServerSettings
from tests.client.rag import SERVICE_NAME, Rag


@dataclass
class Running:
    """A RagService in a thread of its own: the blocking client must not wait for the loop that serves it."""

    rag: Rag
    server: Server
    loop: asyncio.AbstractEventLoop

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.server.port}"


async def _serve(ready: list[Running], started: threading.Event, stop: asyncio.Event) -> None:
    rag = Rag()
    server = Server(
        ServerSettings(port=0, metrics_port=0),
        name="rag",
        service_names=[SERVICE_NAME],
        register=rag.register,
        metrics=Metrics(),
    )
    await server.listen()
    await server.set_serving()
    ready.append(Running(rag, server, asyncio.get_running_loop()))
    started.set()
    await stop.wait()
    await server.drain(0)


@pytest.fixture
def service() -> Iterator[Running]:
    ready: list[Running] = []
    started, stop = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(_serve(ready, started, stop)))
    thread.start()
    assert started.wait(20)
    yield ready[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)
    loop.close()


@pytest.fixture
def client(service: Running) -> Iterator[ragserve.Client]:
    with ragserve.Client(service.target, timeout_seconds=20) as client:
        yield client


@pytest.fixture
async def async_client(service: Running) -> AsyncIterator[ragserve.AsyncClient]:
    async with ragserve.AsyncClient(service.target, timeout_seconds=20) as client:
        yield client
