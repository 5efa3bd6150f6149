"""A connection that reaches its age: its calls go on until they end by themselves, and new calls go elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import grpc.aio
import pytest

from ragserve.v1 import generator_pb2, retriever_pb2
from tests.serving.conftest import Running

AGE_SECONDS, GRACE_SECONDS, CALL_SECONDS = 0.5, 0.1, 4.0
AGEING = {"max_connection_age_seconds": AGE_SECONDS, "grace_seconds": GRACE_SECONDS}

pytestmark = pytest.mark.parametrize("loading", [AGEING], indirect=True)


async def peer(running: Running) -> str:
    """The client's end of the connection that a new call uses."""
    return (await running.retrieve("peer")).results[0].decoded_query


async def slowly(count: int) -> AsyncIterator[retriever_pb2.Query]:
    for number in range(count):
        await asyncio.sleep(CALL_SECONDS / count)
        yield retriever_pb2.Query(text=str(number))


async def test_a_session_outlives_its_connection(running: Running) -> None:
    session = running.generator.Decode()
    end = time.monotonic() + CALL_SECONDS
    exchanged, peers = 0, set[str]()
    while time.monotonic() < end:
        await session.write(generator_pb2.DecodeRequest(open=generator_pb2.OpenRequest(question=str(exchanged))))
        assert (await session.read()).render.sequences[0].text == str(exchanged)
        exchanged += 1
        peers.add(await peer(running))
        await asyncio.sleep(0.05)
    await session.done_writing()
    assert await session.read() is grpc.aio.EOF
    assert len(peers) >= 3, "calls that begin later go to new connections"


async def test_an_upload_and_a_long_call_outlive_their_connection(running: Running) -> None:
    codec = (retriever_pb2.Query.SerializeToString, retriever_pb2.Query.FromString)
    join = running.channel.stream_unary("/echo.Other/Join", *codec)
    joined, slept = await asyncio.gather(join(slowly(10)), running.retrieve(f"sleep {CALL_SECONDS}"))
    assert joined.text == "0123456789"
    assert slept.results[0].decoded_query == f"sleep {CALL_SECONDS}"


async def test_short_calls_are_not_lost(running: Running) -> None:
    end = time.monotonic() + 4 * AGE_SECONDS
    while time.monotonic() < end:
        assert (await running.retrieve("hello")).results


async def test_the_drain_still_ends_after_its_grace(running: Running) -> None:
    session = running.generator.Decode()
    await session.write(generator_pb2.DecodeRequest())
    await session.read()
    await asyncio.sleep(2 * AGE_SECONDS)
    started = time.monotonic()
    await running.server.drain(GRACE_SECONDS)
    assert time.monotonic() - started < 5
    assert await session.code() is not grpc.StatusCode.OK
