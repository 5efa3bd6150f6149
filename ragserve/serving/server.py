"""Boot, health, signals and drain of a service, in one place."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NoReturn, Protocol

import grpc.aio
import uvloop
from grpc_reflection.v1alpha import reflection

from ragserve.boundary import BAD_INPUT, FAILED, Ending, ending_of, guarded, print_error
from ragserve.errors import RagserveError
from ragserve.serving import logs
from ragserve.serving.admission import Admission, Phase
from ragserve.serving.health import Health
from ragserve.serving.interceptor import CallInterceptor
from ragserve.serving.logs import fields
from ragserve.serving.memory import leave_out_what_is_loaded
from ragserve.serving.metrics import Metrics
from ragserve.serving.ports import MetricsPort, address, bind_grpc, open_metrics
from ragserve.serving.private_paths import PrivatePath
from ragserve.serving.settings import ServerSettings

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Clients may ping this often; ours do every 30 seconds.
MIN_PING_INTERVAL_MS = 10_000
# A client that vanished without closing its connection is noticed after the sum of both.
KEEPALIVE_MS = 60_000
KEEPALIVE_TIMEOUT_MS = 20_000
UNLIMITED = 2**31 - 1  # gRPC's value for no limit
# Given to the last answers to leave, once no call is at work.
LAST_BYTES_SECONDS = 2.0

log = logging.getLogger(__name__)


class Service(Protocol):
    """What a service does besides answering calls."""

    async def start(self) -> None:
        """Loads. Health is NOT_SERVING, the port already bound; whatever blocks belongs into a thread."""

    async def stop(self) -> None:
        """Frees what start took; called after the drain."""


class Server:
    """A bound gRPC server with health, reflection, interceptors and a metrics port.

    `port` and `metrics_port` are the real ones, also where the settings say 0.
    """

    def __init__(
        self,
        settings: ServerSettings,
        *,
        name: str,
        service_names: Sequence[str],
        register: Callable[[grpc.aio.Server], None],
        metrics: Metrics,
        private_paths: Sequence[PrivatePath] = (),
    ) -> None:
        self._settings = settings
        self._name = name
        self._service_names = tuple(service_names)
        self._register = register
        self._metrics = metrics
        self._private_paths = private_paths
        self._health = Health(service_names)
        self._admission = Admission(name, settings.max_in_flight, metrics.in_flight)
        self._server: grpc.aio.Server | None = None
        self._metrics_port: MetricsPort | None = None
        self.port = 0
        self.metrics_port = 0

    async def listen(self) -> None:
        """Binds both ports and answers health checks; calls get UNAVAILABLE. Raises InvalidInputError."""
        most_bytes = self._settings.max_message_bytes
        interceptor = CallInterceptor(self._admission, self._metrics, most_bytes, self._private_paths)
        server = grpc.aio.server(interceptors=(interceptor,), options=server_options(self._settings))
        self._server = server
        self.port = bind_grpc(server, self._settings.host, self._settings.port)
        self._metrics_port = open_metrics(
            self._metrics.registry, self._settings.metrics_host, self._settings.metrics_port
        )
        self.metrics_port = self._metrics_port.port
        by_name: Any = _ByName(server)
        self._register(by_name)
        await self._health.register(by_name)
        if self._settings.reflection:
            names = (*self._service_names, "grpc.health.v1.Health", reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, by_name)
        await server.start()

    async def set_serving(self) -> None:
        """Lets calls in and turns health to SERVING."""
        self._admission.phase = Phase.SERVING
        await self._health.set_ready(True)

    async def drain(self, grace_seconds: float) -> None:
        """Health NOT_SERVING, then no new calls; those at work may go on for `grace_seconds`. Frees the ports."""
        self._admission.phase = Phase.DRAINING
        await self._health.set_ready(False)
        if self._server is not None:
            server, self._server = self._server, None
            ending = asyncio.create_task(self._end_idle(server))
            await server.stop(grace_seconds)
            ending.cancel()
        if self._metrics_port is not None:
            await asyncio.to_thread(self._metrics_port.close)
            self._metrics_port = None

    async def _end_idle(self, server: grpc.aio.Server) -> None:
        """Once no call is at work, ends whatever would hold up the drain for the whole grace.

        Those are health watches, reflection streams, and calls that gRPC took as it stopped listening and will never
        hand to us; their clients get CANCELLED.
        """
        await self._admission.wait_idle()
        self._health.end_watches()
        await asyncio.sleep(LAST_BYTES_SECONDS)
        await server.stop(None)


class _ByName:
    """A server as generated code fills it, but without registered methods: each call is looked up by its name.

    grpc.aio waits for the next call of each registered method separately, and builds that wait anew at every call.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service_name: str, method_handlers: object) -> None:
        """Nothing: the same handlers are there as generic ones."""


def server_options(settings: ServerSettings) -> list[tuple[str, Any]]:
    """The gRPC options of a server. A connection's age never ends a call; the drain's grace does."""
    options: list[tuple[str, Any]] = [
        ("grpc.so_reuseport", 0),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.http2.min_ping_interval_without_data_ms", MIN_PING_INTERVAL_MS),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.keepalive_time_ms", KEEPALIVE_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    ]
    if settings.max_connection_age_seconds is not None:
        # At that age the server asks the client to connect anew. Calls on the old connection end by themselves.
        options += [
            ("grpc.max_connection_age_ms", round(settings.max_connection_age_seconds * 1000)),
            ("grpc.max_connection_age_grace_ms", UNLIMITED),
        ]
    return options


async def serve(
    settings: ServerSettings,
    *,
    name: str,
    service_names: Sequence[str],
    register: Callable[[grpc.aio.Server], None],
    service: Service,
    metrics: Metrics,
    private_paths: Sequence[PrivatePath] = (),
) -> int:
    """Runs a service until SIGTERM or SIGINT and returns its exit status.

    0 after a drain, 1 when the service failed to start. A second signal ends the process at once. Errors do not name
    the `private_paths` to clients. Raises InvalidInputError when a port is taken.
    """
    logs.configure(name, settings.log_level)
    stop = _stop_on_signals()
    server = Server(
        settings,
        name=name,
        service_names=service_names,
        register=register,
        metrics=metrics,
        private_paths=private_paths,
    )
    await server.listen()
    where = address(settings.host, server.port), address(settings.metrics_host, server.metrics_port)
    log.info("listening", extra=fields(grpc=where[0], metrics=where[1]))
    starting, stopped = asyncio.create_task(service.start()), asyncio.create_task(stop.wait())
    await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        log.info("stopped while loading")
        await server.drain(0)
        _exit_now(0)
    if not await _started(starting):
        stopped.cancel()
        await server.drain(0)
        return 1
    leave_out_what_is_loaded()
    await server.set_serving()
    log.info("serving")
    await stopped
    log.info("draining", extra=fields(grace_seconds=settings.grace_seconds))
    await server.drain(settings.grace_seconds)
    await service.stop()
    log.info("stopped")
    return 0


def run(main: Callable[[], Coroutine[Any, Any, int]]) -> NoReturn:
    """Runs a service's main and exits with its status; an error becomes one line, a RagserveError status 2."""
    sys.exit(guarded(lambda: uvloop.run(main()), print_error, _ending_of))


def _ending_of(error: BaseException) -> Ending:
    """Status 2 for every error that keeps a service from starting, so that `ragserve up` recognizes it."""
    ending = ending_of(error)
    return Ending(ending.text, BAD_INPUT if ending.status == FAILED else ending.status)


async def _started(starting: asyncio.Task[None]) -> bool:
    """Whether start succeeded; logs one line when it did not."""
    try:
        await starting
    except RagserveError as error:
        log.error("cannot start", extra=fields(field=error.field, reason=error.message))  # noqa: TRY400
        return False
    except (OSError, MemoryError) as error:
        log.error("cannot start", extra=fields(reason=ending_of(error).text))  # noqa: TRY400
        return False
    except Exception:
        log.exception("cannot start")
        return False
    return True


def _stop_on_signals() -> asyncio.Event:
    """An event that the first signal sets; the second one ends the process."""
    stop = asyncio.Event()

    def receive(number: int) -> None:
        if stop.is_set():
            _exit_now(128 + number)
        stop.set()

    loop = asyncio.get_running_loop()
    for number in SIGNALS:
        loop.add_signal_handler(number, receive, number)
    return stop


def _exit_now(status: int) -> NoReturn:
    """Ends the process without waiting for threads, which may be loading a model for minutes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
