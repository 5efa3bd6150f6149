"""The boundary between the clients and gRPC: every call goes through here, and only `ragserve.errors` come out."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncGenerator, Callable, Generator, Sequence
from contextlib import suppress
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ragserve.boundary import debugging
from ragserve.calls import TimeLeft
from ragserve.errors import FailedPreconditionError, InternalError, RagserveError, UnavailableError
from ragserve.failures import SERVICES, Called, Service, explained, outcome_unknown
from ragserve.keywords import in_keywords
from ragserve.serving.channel import channel, sync_channel
from ragserve.serving.status import is_from_service
from ragserve.serving.streams import ClientStream
from ragserve.targets import parse_target

# What gRPC raises itself: failed calls, and misuse such as a closed channel.
FAILURES = (grpc.RpcError, ValueError, RuntimeError)
ASYNC_FAILURES = (*FAILURES, grpc.aio.BaseError, asyncio.CancelledError)
PROBE_SECONDS = 2.0
# A server may end a call at its deadline a little before the client does.
LATE_SECONDS = 0.05

MakeStub = Callable[[Any], Any]
CLOSED = "this client is closed: make a new one"
FORKED = (
    "this client was used before this process was forked, and its connection belongs to the other process: make a "
    "client in each process"
)


class _Connection:
    """What both connections share: where they lead, whether they may still be used, and the errors of their calls."""

    def __init__(
        self, make_stub: MakeStub, service: Service, target: str, retried_methods: Sequence[str], max_attempts: int
    ) -> None:
        self._make_stub = make_stub
        self._service = service
        self._target = parse_target(target)
        self._options: dict[str, Any] = {"retried_methods": retried_methods, "max_attempts": max_attempts}
        self._lock = threading.Lock()
        self._closed = False
        self._process = 0  # that made the first channel
        self._channels: dict[asyncio.AbstractEventLoop | None, tuple[Any, Any]] = {}  # each with its stub

    def _stub_of(self, loop: asyncio.AbstractEventLoop | None, make_channel: Callable[..., Any]) -> Any:
        """The stub of an event loop; None: of blocking calls. Raises FailedPreconditionError if closed or forked."""
        with self._lock:
            if self._closed:
                raise FailedPreconditionError(CLOSED)
            if self._forked:
                raise FailedPreconditionError(FORKED)
            self._process = os.getpid()
            for ended in [known for known in self._channels if known is not None and known.is_closed()]:
                del self._channels[ended]
            if loop not in self._channels:
                made = make_channel(self._target, **self._options)
                self._channels[loop] = made, self._make_stub(made)
            return self._channels[loop][1]

    def _take_channels(self) -> dict[asyncio.AbstractEventLoop | None, Any]:
        """The channels that `close` is to close; from now on no call begins."""
        with self._lock:
            self._closed = True
            taken, self._channels = self._channels, {}
        return {} if self._forked else {loop: made for loop, (made, _) in taken.items()}

    @property
    def _forked(self) -> bool:
        """Whether the channels belong to the process that this one was forked from."""
        return self._process not in (0, os.getpid())

    def _error(self, error: BaseException, left: TimeLeft, found: Service | None) -> RagserveError:
        """The error that a call raises for what gRPC raised. `found`: the service that answers there, if known."""
        raised = in_keywords(self._explained(error, left, found), self._service.name)
        raised.outcome_unknown = not isinstance(error, grpc.RpcError) or outcome_unknown(error)
        return raised

    def _explained(self, error: BaseException, left: TimeLeft, found: Service | None) -> RagserveError:
        cancelled = isinstance(error, asyncio.CancelledError) or _code(error) is grpc.StatusCode.CANCELLED
        if self._closed and (cancelled or not isinstance(error, grpc.RpcError)):
            return FailedPreconditionError("this client was closed while the call ran")
        if isinstance(error, grpc.RpcError):
            remaining = left.seconds()
            late = remaining is not None and remaining < LATE_SECONDS
            return explained(error, Called(self._service, self._target, left.limit, late), found)
        if cancelled:
            return UnavailableError(f"the {self._service.role} at {self._target} cancelled the call")
        return InternalError(f"gRPC failed: {error}")


class Connection(_Connection):
    """The connection of a blocking client. Its channel is made at the first call."""

    def call(self, method: str, request: Any, left: TimeLeft) -> Any:
        """The response of a method. `request` is a message, or an iterator of them."""
        try:
            return getattr(self._stub(), method)(request, timeout=left.seconds())
        except FAILURES as error:
            raise self._failure(error, left) from _cause(error)

    def stream(self, method: str, request: Any, left: TimeLeft) -> Generator[Any, None, None]:
        """The responses of a method that has several. Closing the generator cancels the call."""
        call = self.call(method, request, left)
        try:
            while True:
                try:
                    response = next(call)
                except StopIteration:
                    return
                except FAILURES as error:
                    raise self._failure(error, left) from _cause(error)
                yield response
        finally:
            call.cancel()

    def close(self) -> None:
        """Cancels the calls at work and closes the channel. A second call does nothing."""
        for opened in self._take_channels().values():
            opened.close()

    def _stub(self) -> Any:
        return self._stub_of(None, sync_channel)

    def _failure(self, error: Exception, left: TimeLeft) -> RagserveError:
        return self._error(error, left, self._who() if _is_unimplemented(error) else None)

    def _who(self) -> Service | None:
        """Which of our services answers at the target, by the names that its health service knows."""
        made = self._channels.get(None)
        if made is not None:
            check = health_pb2_grpc.HealthStub(made[0]).Check
            for service in SERVICES:
                with suppress(*FAILURES):
                    check(health_pb2.HealthCheckRequest(service=service.name), timeout=PROBE_SECONDS)
                    return service
        return None


class AsyncConnection(_Connection):
    """The asyncio twin of Connection: one channel for each event loop that makes calls."""

    async def call(self, method: str, request: Any, left: TimeLeft) -> Any:
        """The response of a method. `request` is a message, or an iterator of them."""
        try:
            call = getattr(self._stub(), method)(request, timeout=left.seconds())
            return await (call if isinstance(request, Message) else ClientStream(call).response())
        except ASYNC_FAILURES as error:
            raise await self._failure(error, left) from _cause(error)

    async def stream(self, method: str, request: Any, left: TimeLeft) -> AsyncGenerator[Any, None]:
        """The responses of a method that has several. Closing the generator cancels the call."""
        try:
            call: ClientStream[Any, Any] = ClientStream(getattr(self._stub(), method)(request, timeout=left.seconds()))
        except ASYNC_FAILURES as error:
            raise await self._failure(error, left) from _cause(error)
        responses = aiter(call)
        try:
            while True:
                try:
                    response = await anext(responses)
                except StopAsyncIteration:
                    return
                except ASYNC_FAILURES as error:
                    raise await self._failure(error, left) from _cause(error)
                yield response
        finally:
            call.cancel()

    async def close(self) -> None:
        """Cancels the calls at work and closes the channels. A second call does nothing."""
        for loop, opened in self._take_channels().items():
            if loop is asyncio.get_running_loop():
                await opened.close()
            elif loop is not None and loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(opened.close(), loop))
            # The channel of a loop that has ended is closed when the object is collected.

    def _stub(self) -> Any:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError as error:
            raise FailedPreconditionError("an asynchronous client works only in a running loop of asyncio") from error
        return self._stub_of(loop, channel)

    async def _failure(self, error: BaseException, left: TimeLeft) -> RagserveError:
        """The error to raise. Raises CancelledError again where the caller's task was cancelled."""
        if isinstance(error, asyncio.CancelledError) and _is_own_cancellation():
            raise error
        return self._error(error, left, await self._who() if _is_unimplemented(error) else None)

    async def _who(self) -> Service | None:
        made = self._channels.get(asyncio.get_running_loop())
        if made is not None:
            check = health_pb2_grpc.HealthStub(made[0]).Check
            for service in SERVICES:
                with suppress(*FAILURES, grpc.aio.BaseError):
                    await check(health_pb2.HealthCheckRequest(service=service.name), timeout=PROBE_SECONDS)
                    return service
        return None


def _is_own_cancellation() -> bool:
    """Whether somebody cancelled the task. gRPC also raises CancelledError when the server cancels a call."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _cause(error: BaseException) -> BaseException | None:
    """What an uncaught error shows in front of itself: the text of gRPC where somebody debugs, else nothing."""
    return error if debugging() else None


def _code(error: BaseException) -> grpc.StatusCode | None:
    return error.code() if isinstance(error, grpc.RpcError) else None


def _is_unimplemented(error: BaseException) -> bool:
    return _code(error) is grpc.StatusCode.UNIMPLEMENTED and not is_from_service(error)  # type: ignore[arg-type]
