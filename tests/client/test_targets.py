"""Targets: what is taken, and what is refused with the form to write."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ragserve
from orchestrator.settings import OrchestratorSettings
from ragserve.errors import InvalidInputError
from ragserve.serving.settings import load_settings
from ragserve.targets import parse_target
from tests.client.conftest import Running


@pytest.mark.parametrize(
    "target",
    [
        *("localhost:50051", "127.0.0.1:1", "my-host.example.org:65535", "service_a:80", "[::1]:50051", "[fe80::1]:7"),
        *("dns:///retriever:50061", "dns:retriever:50061", "dns://8.8.8.8/retriever:50061", "dns:///[::1]:5", "dns:5"),
        *("ipv4:127.0.0.1:5,127.0.0.2:5", "ipv6:[::1]:5", "unix:/run/a.sock", "unix:///run/a.sock", "unix-abstract:a"),
        *("vsock:2:5000", "xds:///ragserve"),
    ],
)
def test_targets_that_grpc_takes(target: str) -> None:
    assert parse_target(target) == target


REFUSED = [
    ("http://host:50051", "without http://, such as host:50051"),
    ("https://host:50051/path", "such as host:50051"),
    ("grpc://host:1", "without grpc://"),
    ("ftp://host:1", "no ftp://"),
    ("", "is empty"),
    (" localhost:50051", "white space"),
    ("localhost:50051\n", "white space"),
    ("a b:1", "white space"),
    ("höst:1", "other characters"),
    ("localhost", "no port"),
    ("localhost:", "no port"),
    ("dns:///localhost", "no port"),
    ("[::1]", "no port"),
    (":50051", "no host"),
    ("::1:50051", r"\[ADDRESS\]:PORT"),
    ("[1.2.3.4]:5", "no IPv6"),
    ("localhost:99999", "from 1 to 65535"),
    ("localhost:0", "from 1 to 65535"),
    ("localhost:-1", "from 1 to 65535"),
    ("localhost:http", "from 1 to 65535"),
    ("localhost:50051/", "from 1 to 65535"),
    ("user@host:1", "no name of a host"),
    ("unix:", "nothing after unix:"),
    (None, "missing"),
    (b"localhost:50051", "bytes"),
    (50051, "50051"),
]


@pytest.mark.parametrize(("target", "says"), REFUSED)
def test_targets_that_are_refused(target: Any, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says) as caught:
        parse_target(target, "--target")
    assert caught.value.field == "--target"
    assert "HOST:PORT" in caught.value.message or "[ADDRESS]:PORT" in caught.value.message


@pytest.mark.parametrize("target", ["http://localhost:50051", "localhost", "localhost:99999", 7, ""])
@pytest.mark.parametrize(
    "make", [ragserve.Client, ragserve.AsyncClient, ragserve.KnowledgeClient, ragserve.AsyncKnowledgeClient]
)
def test_every_client_refuses_them_at_once(make: Callable[[Any], object], target: Any) -> None:
    with pytest.raises(InvalidInputError, match="HOST:PORT") as caught:
        make(target)
    assert caught.value.field == "target"


@pytest.mark.parametrize("name", ["retriever", "generator"])
def test_the_orchestrators_settings_refuse_them(name: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        load_settings(OrchestratorSettings, [f"--{name}", "http://host:1"])
    assert caught.value.field == name
    assert str(caught.value) == (
        f"{name} is 'http://host:1'; write HOST:PORT without http://, such as host:1; "
        f"set --{name} or RAGSERVE_ORCHESTRATOR_{name.upper()}"
    )
    assert getattr(load_settings(OrchestratorSettings, [f"--{name}", "dns:///a:1"]), name) == "dns:///a:1"


def test_forms_of_one_address_reach_the_same_service(service: Running) -> None:
    port = service.server.port
    for target in (f"127.0.0.1:{port}", f"dns:///127.0.0.1:{port}", f"ipv4:127.0.0.1:{port}", f"localhost:{port}"):
        with ragserve.Client(target, timeout_seconds=20) as client:
            assert client.generate("q").answer == "Darwin"


@given(st.text() | st.from_regex(r"[a-z.:/\[\]0-9]{0,30}"))
def test_any_text_is_taken_or_refused(target: str) -> None:
    with contextlib.suppress(InvalidInputError):
        assert parse_target(target) == target
