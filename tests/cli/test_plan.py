"""The ports that `ragserve up`, `demo` and `quickstart` give the services."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from ragserve.errors import InvalidInputError
from ragserve_cli import plan as module
from ragserve_cli.plan import Assets, plan

GIVEN = "[retriever.server]\nport = {port}\nmetrics_port = 0\n"


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield int(listener.getsockname()[1])


@pytest.fixture
def free() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def usual_ports(monkeypatch: pytest.MonkeyPatch, **ports: int) -> None:
    monkeypatch.setattr(module, "DEFAULT_PORTS", {name: (ports.get(name, 0), 0) for name in module.DEFAULT_PORTS})


def test_a_usual_port_that_is_in_use_is_replaced_or_refused(monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    usual_ports(monkeypatch, generator=taken)
    with pytest.raises(InvalidInputError, match=f"cannot listen on 127.0.0.1:{taken}"):
        plan(Assets())
    generator = plan(Assets(), free_ports=True)[1]
    assert (generator.name, generator.taken_port, generator.port != taken) == ("generator", taken, True)


def test_a_usual_port_that_another_service_is_given_is_replaced_or_refused(
    monkeypatch: pytest.MonkeyPatch, free: int, tmp_path: Path
) -> None:
    usual_ports(monkeypatch, generator=free)
    config = tmp_path / "ports.toml"
    config.write_text(GIVEN.format(port=free))
    with pytest.raises(InvalidInputError, match=f"port {free} is given to two services"):
        plan(Assets(config))
    retriever, generator, orchestrator = plan(Assets(config), free_ports=True)
    assert (retriever.port, retriever.taken_port, generator.taken_port) == (free, 0, free)
    assert len({launch.port for launch in (retriever, generator, orchestrator)}) == 3
    assert f"--generator={generator.target}" in orchestrator.arguments
