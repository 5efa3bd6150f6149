"""A stream of requests that its client ends, and one that breaks, over a real socket."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from typing import Any

import grpc
import grpc.aio
import pytest

from ragserve.serving.streams import ClientStream, require_ended_by_client

METHOD = "/test.Streams/Count"
BROKEN, WHOLE = 300, 20


class Counting:
    """Counts streams that were read to their end, and those that passed for whole."""

    def __init__(self) -> None:
        self.ended = Counter[int]()
        self.whole = Counter[int]()

    async def count(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        n_requests = len([request async for request in requests])
        self.ended[n_requests] += 1
        await require_ended_by_client(context)
        self.whole[n_requests] += 1
        return str(n_requests).encode()


async def test_a_broken_stream_never_passes_for_a_whole_one() -> None:
    counting, server = Counting(), grpc.aio.server()
    handlers = {"Count": grpc.stream_unary_rpc_method_handler(counting.count)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Streams", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        method = channel.stream_unary(METHOD)
        for number in range(BROKEN):
            call = method()
            await call.write(b"one")
            await asyncio.sleep(0.001 * (number % 2))
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        for _ in range(WHOLE):
            assert await method(iter([b"one", b"two"])) == b"2"
    await server.stop(None)
    assert counting.ended[1], "grpc.aio no longer takes a broken stream for one that ended: nothing to tell apart"
    assert counting.whole == {2: WHOLE}


REFUSED, WRITES = 400, 50


@pytest.fixture
async def refusing() -> AsyncIterator[Any]:
    """A method that refuses every stream after its first request, or at once, or ends it without an error."""

    async def answer(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        first = await anext(aiter(requests)) if number() % 2 else b""
        if first:
            yield first
        if first != b"fine":
            metadata = (("reason", "small"),)
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", metadata)

    number, server = count().__next__, grpc.aio.server()
    handlers = {"Refuse": grpc.stream_stream_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Streams", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel.stream_stream("/test.Streams/Refuse")
    await server.stop(None)


async def ended(run: Callable[[], Awaitable[object]]) -> tuple[object, ...]:
    """The status that a stream ends with, as its client sees it."""
    try:
        await run()
    except grpc.aio.AioRpcError as error:
        metadata: Any = error.trailing_metadata()
        return error.code(), error.details(), metadata.get("reason")
    return ("ended",)


async def test_a_refused_stream_keeps_its_status(refusing: Any) -> None:
    """However many requests are written before the client comes to read the refusal."""

    async def write() -> None:
        stream: ClientStream[bytes, bytes] = ClientStream(refusing())
        while await stream.exchange(b"one") is not None:
            pass

    async def iterate() -> None:
        async def requests() -> AsyncIterator[bytes]:
            for _ in range(WRITES):
                yield b"one"

        assert [one async for one in ClientStream[bytes, bytes](refusing(requests()))] in ([], [b"one"])

    for run in (write, iterate):
        for _ in range(REFUSED // 50):
            ends = await asyncio.gather(*(ended(run) for _ in range(50)))
            assert set(ends) == {(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "small")}


async def test_a_stream_that_ends_without_an_error(refusing: Any) -> None:
    async def iterate() -> None:
        async def requests() -> AsyncIterator[bytes]:
            for _ in range(WRITES):
                yield b"fine"

        assert [one async for one in ClientStream[bytes, bytes](refusing(requests()))] in ([], [b"fine"])

    ends = await asyncio.gather(*(ended(iterate) for _ in range(100)))
    assert set(ends) == {(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", "small"), ("ended",)}
