"""What happens around every call: admission, malformed requests, errors to statuses, metrics."""

from __future__ import annotations

import asyncio
import inspect
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import grpc
import grpc.aio

from ragserve.errors import DeadlineExceededError, InternalError, RagserveError
from ragserve.serving.admission import Admission
from ragserve.serving.deadlines import remaining_seconds
from ragserve.serving.logs import fields
from ragserve.serving.messages import Serializer, checked, checked_all, sized, tolerant
from ragserve.serving.metrics import Metrics
from ragserve.serving.private_paths import PrivatePath, without_paths
from ragserve.serving.status import code_of, status_of

EXEMPT_PREFIXES = ("/grpc.health.", "/grpc.reflection.")
# A client gives up a little before its deadline as seen here, which travels rounded up: cancelled that late,
# the deadline was the reason.
DEADLINE_SLACK_SECONDS = 0.02
DEADLINE_SLACK_SHARE = 0.02

# By whether requests and responses are streams.
MAKERS = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}

T = TypeVar("T")
Context = grpc.aio.ServicerContext[Any, Any]

log = logging.getLogger(__name__)


class CallInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the handlers of our services; health checks and reflection pass untouched."""

    def __init__(
        self, admission: Admission, metrics: Metrics, max_message_bytes: int, private_paths: Sequence[PrivatePath] = ()
    ) -> None:
        self._admission = admission
        self._private_paths = private_paths
        self._max_message_bytes = max_message_bytes
        self._metrics = metrics
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        """The handler of the method, wrapped once."""
        name: str = handler_call_details.method
        if name in self._wrapped:
            return self._wrapped[name]
        handler = await continuation(handler_call_details)
        if handler is None or name.startswith(EXEMPT_PREFIXES):
            return handler
        self._wrapped[name] = self._wrap(name, handler)
        return self._wrapped[name]

    def _wrap(self, name: str, handler: Any) -> grpc.RpcMethodHandler[Any, Any]:
        check = checked_all if handler.request_streaming else checked
        write = sized(handler.response_serializer, self._max_message_bytes)
        if handler.response_streaming:
            inner = handler.stream_stream or handler.unary_stream
            wrapped = self._streaming(name, inner, check, write)
        else:
            inner = handler.stream_unary or handler.unary_unary
            wrapped = self._single(name, inner, check, write)
        make = MAKERS[handler.request_streaming, handler.response_streaming]
        return make(wrapped, tolerant(handler.request_deserializer), write)

    def _single(self, name: str, inner: Any, check: Callable[[Any], Any], write: Serializer) -> Any:
        async def call(request: Any, context: Context) -> Any:
            async def answer() -> Any:
                return write(await inner(check(request), context))

            return await self._guarded(name, context, answer)

        return call

    def _streaming(self, name: str, inner: Any, check: Callable[[Any], Any], write: Serializer) -> Any:
        # Writing here, in the call's own task, ends the inner generator at once when the call is cancelled.
        async def call(request: Any, context: Context) -> None:
            async def answer() -> None:
                if not inspect.isasyncgenfunction(inner):
                    await inner(check(request), context)
                    return
                async with aclosing(inner(check(request), context)) as responses:
                    async for response in responses:
                        await context.write(write(response))
                # A caller that left looks like the end of its requests; the cancellation follows at once.
                await asyncio.sleep(0)

            await self._guarded(name, context, answer)

        return call

    async def _guarded(self, name: str, context: Context, answer: Callable[[], Awaitable[T]]) -> T | None:
        """Admits the call, counts it, then sends its error as a status."""
        started = time.monotonic()
        allowed = remaining_seconds(context)
        code = grpc.StatusCode.OK
        try:
            self._admission.admit()
            try:
                _refuse_late(allowed)
                return await answer()
            finally:
                self._admission.release()
        except asyncio.CancelledError:
            code = _reason(allowed, remaining_seconds(context))
            raise
        except grpc.aio.AbortError:
            code = _as_code(context.code())
            raise
        except Exception as error:
            failure = told(error, name, self._private_paths)
            code = code_of(failure)
        finally:
            service, _, method = name.lstrip("/").partition("/")
            self._metrics.observe_call(service, method, code.name, time.monotonic() - started)
        await _abort(context, failure)
        return None


def _refuse_late(allowed: float | None) -> None:
    """Raises DeadlineExceededError before any work is done for a call whose deadline has passed."""
    if allowed is not None and allowed <= 0:
        raise DeadlineExceededError("the deadline passed before the call was begun")


def _reason(allowed: float | None, remaining: float | None) -> grpc.StatusCode:
    """Why a call was cancelled: its deadline, or its caller."""
    if allowed is None or remaining is None:
        return grpc.StatusCode.CANCELLED
    late = remaining <= max(DEADLINE_SLACK_SECONDS, DEADLINE_SLACK_SHARE * allowed)
    return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED


def _as_code(code: int | grpc.StatusCode) -> grpc.StatusCode:
    """The status code that a servicer aborted with itself."""
    return next((known for known in grpc.StatusCode if code in (known, known.value[0])), grpc.StatusCode.UNKNOWN)


def told(error: Exception, method: str, private_paths: Sequence[PrivatePath] = ()) -> RagserveError:
    """The error as the client may see it: without paths of this machine, which the log has.

    Of our bugs an id only, under which the log has the traceback.
    """
    if isinstance(error, RagserveError) and not isinstance(error, InternalError):
        public = without_paths(error, private_paths)
        if public is not error:
            log.warning("a call failed over a file", extra=fields(method=method, reason=error.message))
        return public
    error_id = uuid.uuid4().hex[:12]
    log.error("internal error", exc_info=error, extra=fields(error_id=error_id, method=method))
    return InternalError(f"internal error; the server's log has it under the id {error_id}")


async def _abort(context: Context, error: RagserveError) -> None:
    status = status_of(error)
    await context.abort(status.code, status.text, status.trailing_metadata)
