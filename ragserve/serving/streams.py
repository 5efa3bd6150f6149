"""How a stream ended: for servers whether the client ended its requests, for clients the status that the server sent.

grpc.aio does not always say so itself.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import suppress
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio

# What grpc.aio puts in the place of a stream's status when a write comes upon the end of the stream.
STAND_IN = "Internal error from Core"
STATUS_SECONDS = 5.0  # within which the server's status follows the stand-in; it takes less than a millisecond
PAUSE_SECONDS = 0.001

Request = TypeVar("Request")
Response = TypeVar("Response")
T = TypeVar("T")


async def require_ended_by_client(context: Any) -> None:
    """Distinguishes a half-closed stream from a broken one: returns only if the client ended its requests itself.

    grpc.aio also ends the requests of a call that was cancelled or whose client died, and cancels the handler some time
    later: what came until then would look complete. So this sends the initial metadata, which fails on a broken stream.
    A handler may call this once, and may not send initial metadata itself.

    Raises:
        CancelledError: the stream broke.
    """
    try:
        await context.send_initial_metadata(())
    except Exception as error:  # of a class that grpc keeps to itself
        raise asyncio.CancelledError("the client's stream broke") from error


class ClientStream(Generic[Request, Response]):
    """A call as its client sees it. Its errors carry the status that the server ended it with.

    A server may end a stream while the client writes to it, as where it refuses the call. grpc.aio then raises
    INTERNAL, "Internal error from Core", and may overwrite the server's status with that. So the status is kept as it
    comes.
    """

    def __init__(self, call: Any) -> None:
        """Takes over a call that was just made."""
        self._call = call
        self._end: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._keep_status)

    async def exchange(self, request: Request) -> Response | None:
        """Sends a request and returns the next response; None where the server ended the stream without an error.

        Raises AioRpcError, and CancelledError also where the call was cancelled.
        """
        try:
            with suppress(asyncio.InvalidStateError):  # the stream has ended: reading says how
                await self._call.write(request)
            response: Any = await self._call.read()
        except grpc.aio.AioRpcError as error:
            await self._raise_end(error)
            return None
        return None if response is grpc.aio.EOF else response

    async def __aiter__(self) -> AsyncIterator[Response]:
        """The responses of a call that was made with an iterator of its requests. Raises AioRpcError."""
        try:
            async for response in self._call:
                yield response
        except grpc.aio.AioRpcError as error:
            await self._raise_end(error)

    async def response(self) -> Response:
        """The only response of a call that was made with an iterator of its requests. Raises AioRpcError."""
        try:
            call: Any = self._call
            return await call  # type: ignore[no-any-return]
        except grpc.aio.AioRpcError as error:
            await self._raise_end(error)
            raise

    async def end(self, seconds: float) -> None:
        """Says that no request follows and lets the server end the call; cancels it where that takes longer."""
        try:
            await self._call.done_writing()
            await asyncio.wait_for(self._call.code(), seconds)
        except (grpc.aio.AioRpcError, grpc.aio.BaseError, asyncio.InvalidStateError, TimeoutError):
            self._call.cancel()

    def cancel(self) -> None:
        """Cancels the call, unless it has ended."""
        self._call.cancel()

    def _keep_status(self, call: Any) -> None:
        """Called by grpc.aio once there is a status, before it can be overwritten."""
        code, details = _result(call.code()), _result(call.details())
        if code is not None:
            metadata = _result(call.initial_metadata()), _result(call.trailing_metadata())
            self._end = grpc.aio.AioRpcError(code, *metadata, details=details)

    async def _raise_end(self, error: grpc.aio.AioRpcError) -> None:
        """Raises the error with the server's status; returns where the server ended the stream without one."""
        until = time.monotonic() + STATUS_SECONDS
        end = error if error.details() != STAND_IN or self._end is None else self._end
        while end.details() == STAND_IN and time.monotonic() < until:  # it came first: the status replaces it soon
            await asyncio.sleep(PAUSE_SECONDS)
            self._keep_status(self._call)
            end = self._end or end
        if end.code() is not grpc.StatusCode.OK:
            raise end from error


def _result(coroutine: Coroutine[Any, Any, T]) -> T | None:
    """What a coroutine returns that need not wait; None where it would."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    coroutine.close()
    return None
