"""Clients that are closed, shared between event loops and processes, cancelled, or left half-way."""

from __future__ import annotations

import asyncio
import gc
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

import ragserve
from ragserve.errors import FailedPreconditionError, UnavailableError
from tests.client.conftest import Running
from tests.client.test_client import eventually

CLOSED = "this client is closed"
CLOSED_MEANWHILE = "this client was closed while the call ran"


def test_a_closed_client(service: Running) -> None:
    client = ragserve.Client(service.target)
    assert client.generate("q").answer == "Darwin"
    stream, unstarted = client.generate_stream("slow"), client.generate_stream("q")
    next(stream)
    client.close()
    client.close()
    calls: list[Callable[[], object]] = [
        lambda: client.generate("q"),
        lambda: client.retrieve("q"),
        lambda: client.score("q", "a"),
        lambda: next(unstarted),
        lambda: next(client.generate_stream("q")),
        lambda: ragserve.Client.__enter__(client).generate("q"),
    ]
    for call in calls:
        with pytest.raises(FailedPreconditionError, match=CLOSED):
            call()
    with pytest.raises(FailedPreconditionError, match=CLOSED_MEANWHILE):
        next(stream)
    never_used = ragserve.Client(service.target)
    never_used.close()
    with pytest.raises(FailedPreconditionError, match=CLOSED):
        never_used.generate("q")


async def test_a_closed_asynchronous_client(service: Running) -> None:
    client = ragserve.AsyncClient(service.target)
    stream, unstarted = client.generate_stream("slow"), client.generate_stream("q")
    await anext(stream)
    await client.close()
    await client.close()
    for call in (client.generate("q"), client.retrieve("q"), client.score("q", "a"), anext(unstarted)):
        with pytest.raises(FailedPreconditionError, match=CLOSED):
            await call
    with pytest.raises(FailedPreconditionError, match=CLOSED_MEANWHILE):
        await anext(stream)


async def test_closed_knowledge_clients(service: Running) -> None:
    client, other = ragserve.KnowledgeClient(service.target), ragserve.AsyncKnowledgeClient(service.target)
    client.close()
    await other.close()
    for call in (
        client.info,
        lambda: client.upsert([{"id": "a", "text": "b"}]),
        lambda: next(client.retrieve_stream([])),
    ):
        with pytest.raises(FailedPreconditionError, match=CLOSED):
            call()
    for started in (other.info(), other.delete(["a"]), anext(other.retrieve_stream(["q"]))):
        with pytest.raises(FailedPreconditionError, match=CLOSED):
            await started


def test_closing_while_calls_run(service: Running) -> None:
    client = ragserve.Client(service.target)
    with ThreadPoolExecutor(8) as threads:
        calls = [threads.submit(client.generate, "slow") for _ in range(8)]
        eventually(lambda: len(service.rag.requests) == 8)
        client.close()
        for call in calls:
            with pytest.raises(FailedPreconditionError, match=CLOSED_MEANWHILE):
                call.result(20)
    eventually(lambda: len(service.rag.ended) == 8)


def test_closing_between_calls_of_many_threads(service: Running) -> None:
    for _ in range(10):
        client = ragserve.Client(service.target)

        def use(client: ragserve.Client = client) -> str:
            while True:
                try:
                    client.generate("q")
                except FailedPreconditionError as error:
                    return str(error)

        with ThreadPoolExecutor(4) as threads:
            calls = [threads.submit(use) for _ in range(4)]
            time.sleep(0.02)
            client.close()
            assert all("closed" in call.result(20) for call in calls)


async def test_closing_while_asynchronous_calls_run(service: Running) -> None:
    client = ragserve.AsyncClient(service.target)
    tasks = [asyncio.create_task(client.generate("slow")) for _ in range(8)]
    await asyncio.to_thread(eventually, lambda: len(service.rag.requests) == 8)
    await client.close()
    for task in tasks:
        with pytest.raises(FailedPreconditionError, match=CLOSED_MEANWHILE):
            await task


def test_one_asynchronous_client_in_several_loops(service: Running) -> None:
    client = ragserve.AsyncClient(service.target)  # made outside of any loop

    async def use() -> str:
        events = [event async for event in client.generate_stream("q")]
        assert len(events) == 3
        return (await client.generate("q")).answer

    assert [asyncio.run(use()) for _ in range(3)] == ["Darwin"] * 3
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(lambda: asyncio.run(use())) for _ in range(8)]
        assert [call.result(30) for call in calls] == ["Darwin"] * 8
    asyncio.run(client.close())
    with pytest.raises(FailedPreconditionError, match=CLOSED):
        asyncio.run(use())


def test_closing_from_another_loop_while_a_call_runs(service: Running) -> None:
    client = ragserve.AsyncClient(service.target)
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(lambda: asyncio.run(client.generate("slow")))
        eventually(lambda: service.rag.requests)
        asyncio.run(client.close())
        with pytest.raises(FailedPreconditionError, match=CLOSED_MEANWHILE):
            call.result(20)


def test_no_loop_at_all(service: Running) -> None:
    coroutine = ragserve.AsyncClient(service.target).generate("q")
    with pytest.raises(FailedPreconditionError, match="running loop of asyncio"):
        coroutine.send(None)


async def test_timeouts_and_cancellation_are_asyncios(async_client: ragserve.AsyncClient, service: Running) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await async_client.generate("slow")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(async_client.generate("slow"), 0.1)

    async def read_on() -> None:
        async for _ in async_client.generate_stream("slow"):
            pass

    async def two() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(async_client.generate("slow"))
            group.create_task(async_client.generate("full"))

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await read_on()
    with pytest.raises(ExceptionGroup) as caught:
        await two()
    assert [type(error) for error in caught.value.exceptions] == [ragserve.ResourceExhaustedError]
    await asyncio.to_thread(eventually, lambda: service.rag.ended.count("slow") == 3)
    assert (await async_client.generate("q")).answer == "Darwin"


async def test_a_server_that_cancels_is_no_cancellation_of_the_caller() -> None:
    async def cancel(_request: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.CANCELLED, "changed my mind")
        return b""

    async def cancel_stream(_request: bytes, context: Any) -> AsyncIterator[bytes]:
        await context.abort(grpc.StatusCode.CANCELLED, "changed my mind")
        yield b""

    handlers = {
        "Generate": grpc.unary_unary_rpc_method_handler(cancel),
        "GenerateStream": grpc.unary_stream_rpc_method_handler(cancel_stream),
    }
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("ragserve.v1.RagService", handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with ragserve.AsyncClient(f"127.0.0.1:{port}", max_attempts=1) as client:
        with pytest.raises(UnavailableError, match=r"cancelled the call|changed my mind"):
            await client.generate("q")
        with pytest.raises(UnavailableError, match=r"cancelled the call|changed my mind"):
            await anext(client.generate_stream("q"))
    with ragserve.Client(f"127.0.0.1:{port}", max_attempts=1) as other, pytest.raises(UnavailableError):
        await asyncio.to_thread(other.generate, "q")
    await server.stop(0)


def test_a_generator_that_is_left_cancels_its_call(client: ragserve.Client, service: Running) -> None:
    for event in client.generate_stream("slow"):
        assert isinstance(event, ragserve.PassagesEvent)
        break
    gc.collect()
    eventually(lambda: service.rag.ended == ["stream"])


async def test_what_a_caller_throws_into_a_generator_passes(
    client: ragserve.Client, async_client: ragserve.AsyncClient, service: Running
) -> None:
    def throw() -> None:
        events = client.generate_stream("slow")
        next(events)
        with pytest.raises(KeyError):
            events.throw(KeyError("mine"))

    await asyncio.to_thread(throw)
    events = async_client.generate_stream("slow")
    await anext(events)
    with pytest.raises(ValueError, match="mine"):
        await events.athrow(ValueError("mine"))
    await asyncio.to_thread(eventually, lambda: service.rag.ended == ["stream"] * 2)


def test_an_interruption_passes(service: Running) -> None:
    """Ctrl-C while a call runs."""

    def interrupt() -> None:
        eventually(lambda: service.rag.requests)
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with ragserve.Client(service.target) as client, ThreadPoolExecutor(1) as threads:
            done = threads.submit(interrupt)
            with pytest.raises(KeyboardInterrupt):
                client.generate("slow")
            done.result(20)
    finally:
        signal.signal(signal.SIGINT, before)
    eventually(lambda: service.rag.ended == ["slow"])


FORK_CODE = """
import os, ragserve
client = ragserve.Client("127.0.0.1:1", timeout_seconds=20, max_attempts=1)
def ask():
    try:
        client.generate("q")
    except ragserve.RagserveError as error:
        print(type(error).__name__, flush=True)
if USED:
    ask()
child = os.fork()
if child == 0:
    ask()
    client.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
ask()
"""


@pytest.mark.parametrize("used", [False, True])
def test_a_process_that_was_forked(used: bool) -> None:
    """In a process of its own: this one has threads."""
    code = FORK_CODE.replace("USED", str(used))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100, check=True)
    before, child = ["UnavailableError"] * used, "FailedPreconditionError" if used else "UnavailableError"
    assert done.stdout.split() == [*before, child, "UnavailableError"]
