"""What a client says when it reaches nobody, another service, or somebody too slow."""

from __future__ import annotations

import asyncio
import http.server
import shutil
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import grpc
import pytest

import ragserve
from ragserve.errors import DeadlineExceededError, FailedPreconditionError, UnavailableError
from ragserve.knowledge_calls import delete
from tests.client.conftest import Running


def ask(target: str, seconds: float = 20) -> ragserve.Answer:
    with ragserve.Client(target, timeout_seconds=seconds, max_attempts=1) as client:
        return client.generate("q")


async def ask_async(target: str) -> ragserve.Answer:
    async with ragserve.AsyncClient(target, timeout_seconds=20, max_attempts=1) as client:
        return await client.generate("q")


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


def place(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


async def test_nobody_listens(listening: socket.socket) -> None:
    target = place(listening)
    listening.close()
    says = rf"^nothing listens at {target} \(connection refused\): is the orchestrator running\?$"
    with pytest.raises(UnavailableError, match=says) as caught:
        ask(target)
    assert "_InactiveRpcError" not in "".join(traceback.format_exception(caught.value))
    with pytest.raises(UnavailableError, match=says):
        await ask_async(target)
    with ragserve.KnowledgeClient(target, max_attempts=1) as client:
        with pytest.raises(UnavailableError, match="is the retriever running"):
            client.info()
        with pytest.raises(UnavailableError, match="is the retriever running"):
            next(client.retrieve_stream(["q"]))


def test_a_sentence_that_follows_a_question_has_no_second_mark() -> None:
    """An attempt of a write broke off, and nobody listened at the next one."""
    call = delete(["a"])
    call.lost.append(UnavailableError("the connection broke"))
    for said, expected in (("is it running?", "is it running? Nobody"), ("it broke", "it broke. Nobody")):
        error = UnavailableError(said)
        call.failed(error)
        assert error.message.startswith(f"{expected} knows whether the deletion was committed.")


def test_a_host_that_is_not_known() -> None:
    with pytest.raises(UnavailableError, match=r"^the host of nosuch.invalid:50051 is not known"):
        ask("nosuch.invalid:50051")


def test_no_socket_in_the_file_system() -> None:
    with pytest.raises(UnavailableError, match=r"^there is no socket at unix:/nonexistent/socket"):
        ask("unix:/nonexistent/socket")


def test_a_web_server() -> None:
    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    with pytest.raises(UnavailableError, match="does not speak gRPC"):
        ask(f"127.0.0.1:{server.server_port}")
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_server_with_tls(tls: tuple[bytes, bytes]) -> None:
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([tls]))
        server.start()
        with pytest.raises(UnavailableError, match="closed the connection at once: it may expect TLS"):
            ask(f"127.0.0.1:{port}")
        server.stop(0).wait()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, bytes]:
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key", folder / "certificate"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
    found = shutil.which("openssl")
    if found is None:
        pytest.skip("openssl is not installed")
    made = [found, *command[1:], "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True, timeout=60)
    return key.read_bytes(), certificate.read_bytes()


async def test_the_port_of_another_service(service: Running) -> None:
    """The service of the fixture is an orchestrator."""
    says = f"{service.target} is the orchestrator, not the retriever. Usual ports: .*retriever's is 50061"
    with ragserve.KnowledgeClient(service.target) as client:
        calls: list[Callable[[], object]] = [client.info, lambda: next(client.retrieve_stream(["q"]))]
        for call in (*calls, lambda: client.delete(["a"]), lambda: client.upsert([{"id": "a", "text": "b"}])):
            with pytest.raises(FailedPreconditionError, match=says) as caught:
                call()
            assert caught.value.field == "target"
    async with ragserve.AsyncKnowledgeClient(service.target) as other:
        with pytest.raises(FailedPreconditionError, match=says):
            await other.info()
        with pytest.raises(FailedPreconditionError, match=says):
            await anext(other.retrieve_stream(["q"] * 100))
        with pytest.raises(FailedPreconditionError, match=says):
            await other.upsert({"id": str(number), "text": "b" * 1000} for number in range(3000))


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("kb versions --retriever TARGET", "error: --retriever: TARGET is the orchestrator, not the retriever"),
        ("info --retriever TARGET", "error: --retriever: TARGET is the orchestrator, not the retriever"),
        ("ask q --target http://TARGET", "error: --target is 'http://TARGET'; write HOST:PORT without http://"),
    ],
)
def test_the_command_line_names_the_flag(service: Running, command: str, says: str) -> None:
    code = "from ragserve_cli.main import main; main()"
    words = command.replace("TARGET", service.target).split()
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode
    assert done.stderr.startswith(says.replace("TARGET", service.target))


def test_another_grpc_server() -> None:
    with ThreadPoolExecutor(1) as threads:
        server = grpc.server(threads)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with pytest.raises(FailedPreconditionError, match=r"is not the orchestrator: it does not serve ragserve\.v1"):
            ask(f"127.0.0.1:{port}")
        server.stop(0).wait()


async def test_too_little_time(
    listening: socket.socket, client: ragserve.Client, async_client: ragserve.AsyncClient
) -> None:
    with pytest.raises(DeadlineExceededError, match=r"timeout_seconds was 0\.3; raise it"):
        ask(place(listening), 0.3)
    with pytest.raises(
        DeadlineExceededError, match=r"no answer from the orchestrator at .*: timeout_seconds was 0\.25"
    ):
        await asyncio.to_thread(client.generate, "slow", timeout_seconds=0.25)
    with pytest.raises(DeadlineExceededError, match=r"timeout_seconds was 0\.25"):
        await async_client.generate("slow", timeout_seconds=0.25)
    with pytest.raises(DeadlineExceededError, match=r"timeout_seconds was 0\.25"):
        async for _ in async_client.generate_stream("slow", timeout_seconds=0.25):
            pass


def test_a_stop_in_the_middle_of_a_call(service: Running) -> None:
    with ragserve.Client(service.target, max_attempts=1) as client:
        events = client.generate_stream("slow")
        next(events)
        asyncio.run_coroutine_threadsafe(service.server.drain(0), service.loop).result(20)
        with pytest.raises(UnavailableError):
            next(events)
