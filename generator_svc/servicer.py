"""GeneratorService: convert, one engine call, convert back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from generator_svc.convert import command_from_proto, info_to_proto, reply_to_proto
from generator_svc.engine import GeneratorEngine
from ragserve.errors import RagserveError
from ragserve.serving.deadlines import remaining_seconds
from ragserve.v1 import generator_pb2, generator_pb2_grpc

SERVICE_NAME = generator_pb2.DESCRIPTOR.services_by_name["GeneratorService"].full_name


class GeneratorServicer(generator_pb2_grpc.GeneratorServiceServicer):
    """The gRPC face of the engine."""

    def __init__(self, engine: GeneratorEngine) -> None:
        self._engine = engine

    async def Decode(  # noqa: N802
        self, request_iterator: AsyncIterator[generator_pb2.DecodeRequest], context: Any
    ) -> AsyncIterator[generator_pb2.DecodeResponse]:
        """One stream is one session; leaving it, however, frees the session."""
        async with self._engine.connect(remaining_seconds(context)) as session:
            async for request in _until(request_iterator, session.ended):
                yield reply_to_proto(await session.handle(command_from_proto(request)))

    async def GetInfo(  # noqa: N802
        self, request: generator_pb2.GeneratorServiceGetInfoRequest, context: Any
    ) -> generator_pb2.GeneratorServiceGetInfoResponse:
        """What is loaded."""
        return info_to_proto(self._engine.info())


async def _until(
    requests: AsyncIterator[generator_pb2.DecodeRequest], ended: asyncio.Future[RagserveError]
) -> AsyncIterator[generator_pb2.DecodeRequest]:
    """Requests until the client has no more; raises the error that the engine ended the session with."""
    while True:
        following = asyncio.ensure_future(anext(requests, None))
        try:
            waiting: set[asyncio.Future[Any]] = {following, ended}
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            if ended.done() and not following.done():
                raise ended.result()
            request = await following
        finally:
            following.cancel()
        if request is None:
            return
        yield request
