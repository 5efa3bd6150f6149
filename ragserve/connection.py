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


class _Use:
    """Whether a client may still be used."""

    def __init__(self, service: Service, target: str) -> None:
        self.service = service
        self.target = parse_target(target)
        self.closed = False
        self._process = 0  # that made the first connection

    def check(self) -> None:
        """Raises FailedPreconditionError when it may not."""
        if self.closed:
            raise FailedPreconditionError(CLOSED)
        if self.forked:
            raise FailedPreconditionError(FORKED)
        self._process = os.getpid()

    @property
    def forked(self) -> bool:
        """Whether the connection belongs to the process that this one was forked from."""
        return self._process not in (0, os.getpid())

    def failure(self, error: BaseException, left: TimeLeft, found: Service | None) -> RagserveError:
        """The error that a call raises for what gRPC raised."""
        failure = in_keywords(self._failure(error, left, found), self.service.name)
        failure.outcome_unknown = not isinstance(error, grpc.RpcError) or outcome_unknown(error)
        return failure

    def _failure(self, error: BaseException, left: TimeLeft, found: Service | None) -> RagserveError:
        cancelled = isinstance(error, asyncio.CancelledError) or _code(error) is grpc.StatusCode.CANCELLED
        if self.closed and (cancelled or not isinstance(error, grpc.RpcError)):
            return FailedPreconditionError("this client was closed while the call ran")
        if isinstance(error, grpc.RpcError):
            remaining = left.seconds()
            late = remaining is not None and remaining < LATE_SECONDS
            called = Called(self.service, self.target, left.limit, late)
            return explained(error, called, found)
        if cancelled:
            return UnavailableError(f"the {self.service.role} at {self.target} cancelled the call")
        return InternalError(f"gRPC failed: {error}")


class Connection:
    """A connection of a blocking client. It is made at the first call."""

    def __init__(
        self, make_stub: MakeStub, service: Service, target: str, retried_methods: Sequence[str], max_attempts: int
    ) -> None:
        self._use = _Use(service, target)
        self._make_stub = make_stub
        self._options: dict[str, Any] = {"retried_methods": retried_methods, "max_attempts": max_attempts}
        self._lock = threading.Lock()
        self._made: tuple[grpc.Channel, Any] | None = None

    def call(self, method: str, request: Any, left: TimeLeft) -> Any:
        """The response of a method. `request` is a message, or an iterator of them."""
        try:
            return getattr(self._stub(), method)(request, timeout=left.seconds())
        except FAILURES as error:
            raise self._failure(error, left) from error

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
                    raise self._failure(error, left) from error
                yield response
        finally:
            call.cancel()

    def close(self) -> None:
        """Cancels the calls at work and closes the connection. Nothing happens at the second time."""
        with self._lock:
            self._use.closed = True
            made, self._made = self._made, None
        if made is not None and not self._use.forked:
            made[0].close()

    def _stub(self) -> Any:
        with self._lock:
            self._use.check()
            if self._made is None:
                opened = sync_channel(self._use.target, **self._options)
                self._made = opened, self._make_stub(opened)
            return self._made[1]

    def _failure(self, error: Exception, left: TimeLeft) -> RagserveError:
        return self._use.failure(error, left, self._who() if _is_unimplemented(error) else None)

    def _who(self) -> Service | None:
        """Which of our services answers there, by the names that its health service knows."""
        made = self._made
        if made is not None:
            check = health_pb2_grpc.HealthStub(made[0]).Check
            for service in SERVICES:
                with suppress(*FAILURES):
                    check(health_pb2.HealthCheckRequest(service=service.name), timeout=PROBE_SECONDS)
                    return service
        return None


class AsyncConnection:
    """The asyncio twin of Connection: one connection for each event loop that makes calls."""

    def __init__(
        self, make_stub: MakeStub, service: Service, target: str, retried_methods: Sequence[str], max_attempts: int
    ) -> None:
        self._use = _Use(service, target)
        self._make_stub = make_stub
        self._options: dict[str, Any] = {"retried_methods": retried_methods, "max_attempts": max_attempts}
        self._lock = threading.Lock()
        self._made: dict[asyncio.AbstractEventLoop, tuple[grpc.aio.Channel, Any]] = {}

    async def call(self, method: str, request: Any, left: TimeLeft) -> Any:
        """The response of a method. `request` is a message, or an iterator of them."""
        try:
            call = getattr(self._stub(), method)(request, timeout=left.seconds())
            return await (call if isinstance(request, Message) else ClientStream(call).response())
        except ASYNC_FAILURES as error:
            raise await self._failure(error, left) from error

    async def stream(self, method: str, request: Any, left: TimeLeft) -> AsyncGenerator[Any, None]:
        """The responses of a method that has several. Closing the generator cancels the call."""
        try:
            call: ClientStream[Any, Any] = ClientStream(getattr(self._stub(), method)(request, timeout=left.seconds()))
        except ASYNC_FAILURES as error:
            raise await self._failure(error, left) from error
        responses = aiter(call)
        try:
            while True:
                try:
                    response = await anext(responses)
                except StopAsyncIteration:
                    return
                except ASYNC_FAILURES as error:
                    raise await self._failure(error, left) from error
                yield response
        finally:
            call.cancel()

    async def close(self) -> None:
        """Cancels the calls at work and closes the connections. Nothing happens at the second time."""
        with self._lock:
            self._use.closed = True
            made, self._made = self._made, {}
        if self._use.forked:
            return
        for loop, (opened, _) in made.items():
            if loop is asyncio.get_running_loop():
                await opened.close()
            elif loop.is_running():
                await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(opened.close(), loop))
            # The connection of a loop that has ended is closed with the object.

    def _stub(self) -> Any:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError as error:
            raise FailedPreconditionError("an asynchronous client works only in a running loop of asyncio") from error
        with self._lock:
            self._use.check()
            for ended in [known for known in self._made if known.is_closed()]:
                del self._made[ended]
            if loop not in self._made:
                opened = channel(self._use.target, **self._options)
                self._made[loop] = opened, self._make_stub(opened)
            return self._made[loop][1]

    async def _failure(self, error: BaseException, left: TimeLeft) -> RagserveError:
        """The error to raise. Raises CancelledError again where the caller's task was cancelled."""
        if isinstance(error, asyncio.CancelledError) and _is_own_cancellation():
            raise error
        return self._use.failure(error, left, await self._who() if _is_unimplemented(error) else None)

    async def _who(self) -> Service | None:
        made = self._made.get(asyncio.get_running_loop())
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


def _code(error: BaseException) -> grpc.StatusCode | None:
    return error.code() if isinstance(error, grpc.RpcError) else None


def _is_unimplemented(error: BaseException) -> bool:
    return _code(error) is grpc.StatusCode.UNIMPLEMENTED and not is_from_service(error)  # type: ignore[arg-type]
