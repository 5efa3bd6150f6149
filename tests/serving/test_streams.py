"""A stream of requests that its client ends, and one that breaks, over a real socket."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from ragserve.serving.streams import require_ended_by_client

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
