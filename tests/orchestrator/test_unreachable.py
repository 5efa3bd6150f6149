"""What callers and the log hear when the orchestrator does not reach the service that a setting names."""

from __future__ import annotations

import logging
import socket
from contextlib import closing

import pytest

import ragserve
from orchestrator.settings import OrchestratorSettings
from ragserve.serving.metrics import Metrics
from ragserve.serving.settings import ServerSettings
from tests.orchestrator.toy import Toy
from tests.orchestrator.toy_services import orchestrator, world


async def failures(target: str) -> list[str]:
    """What a caller of an orchestrator hears whose retriever and generator are said to be there."""
    settings = OrchestratorSettings(
        server=ServerSettings(port=0, metrics_port=0), retriever=target, generator=target, startup_wait_seconds=0.3
    )
    said = []
    async with orchestrator(settings, Metrics()) as own, ragserve.AsyncClient(own, max_attempts=1) as client:
        for call in (client.retrieve("q"), client.score("q", "a", documents=[{"title": "t", "text": "x"}])):
            with pytest.raises(ragserve.UnavailableError) as caught:
                await call
            said.append(str(caught.value))
    return said


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return sorted(record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)


async def test_nobody_listens(caplog: pytest.LogCaptureFixture) -> None:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        target = f"127.0.0.1:{free.getsockname()[1]}"
        said = await failures(target)
    assert said[-1] == f"nothing listens at {target} (connection refused): is the generator running?"
    assert f"the retriever does not answer yet: nothing listens at {target}" in "".join(warned(caplog))


async def test_another_service_is_there(caplog: pytest.LogCaptureFixture) -> None:
    async with world(Toy("disagree", vocab=60, seed=3)) as running:
        said = await failures(running.target)
    says = (
        f"what listens at {running.target} is not ready as the generator: it is starting or stopping, or it is another"
    )
    assert says in said[-1]
    assert "not ready as the retriever" in "".join(warned(caplog))
