"""Binding ports, with an error that says which setting to change."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from threading import Thread
from typing import Protocol

import grpc.aio
from prometheus_client import CollectorRegistry, start_http_server

from ragserve.errors import InvalidInputError


class HttpServer(Protocol):
    """What prometheus_client starts."""

    server_port: int

    def shutdown(self) -> None:
        """Ends the serving loop."""

    def server_close(self) -> None:
        """Closes the socket."""


@dataclass(frozen=True)
class MetricsPort:
    """The HTTP port that Prometheus scrapes."""

    port: int
    _server: HttpServer
    _thread: Thread

    def close(self) -> None:
        """Stops answering and frees the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def address(host: str, port: int) -> str:
    """host:port, with brackets around IPv6 addresses."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind_grpc(server: grpc.aio.Server, host: str, port: int) -> int:
    """Binds the gRPC port and returns it. Raises InvalidInputError naming the setting."""
    _check_free(host, port, "server.port")
    try:
        return server.add_insecure_port(address(host, port))
    except RuntimeError as error:
        raise InvalidInputError("server.port", f"cannot listen on {address(host, port)}: {error}") from error


def open_metrics(registry: CollectorRegistry, host: str, port: int) -> MetricsPort:
    """Serves the registry over HTTP. Raises InvalidInputError naming the setting."""
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise _refused(host, port, "server.metrics_port", error) from error
    return MetricsPort(server.server_port, server, thread)


def _check_free(host: str, port: int, setting: str) -> None:
    """Tries the port with a plain socket first: gRPC's own failure does not say why, and logs several lines."""
    if not port:
        return
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise _refused(host, port, setting, error) from error


def _refused(host: str, port: int, setting: str, error: OSError) -> InvalidInputError:
    reason = (error.strerror or str(error)).lower()
    return InvalidInputError(setting, f"cannot listen on {address(host, port)}: {reason}; choose another {setting}")
