"""Binding ports, with an error that says which setting to change."""

from __future__ import annotations

import socket
from http.server import ThreadingHTTPServer
from socketserver import TCPServer
from threading import Thread
from typing import Any

import grpc.aio
from prometheus_client import CollectorRegistry, MetricsHandler

from ragserve.errors import InvalidInputError

# How soon the metrics port notices that it should close.
POLL_SECONDS = 0.02


class HttpServer(ThreadingHTTPServer):
    """Answers each scrape in a thread of its own."""

    daemon_threads = True

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        self.address_family, _, _, _, where = _resolve(host, port)
        super().__init__(where[:2], MetricsHandler.factory(registry))

    def server_bind(self) -> None:
        """Binds without looking up the host's name, which may take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]


class MetricsPort:
    """The HTTP port that Prometheus scrapes: every path gives the metrics."""

    def __init__(self, registry: CollectorRegistry, host: str, port: int) -> None:
        self._server = HttpServer(host, port, registry)
        self.port: int = self._server.server_port
        self._thread = Thread(target=self._server.serve_forever, args=(POLL_SECONDS,), name="metrics", daemon=True)
        self._thread.start()

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
        return MetricsPort(registry, host, port)
    except OSError as error:
        raise _refused(host, port, "server.metrics_port", error) from error


def _check_free(host: str, port: int, setting: str) -> None:
    """Tries the port with a plain socket first: gRPC's own failure does not say why, and logs several lines."""
    if not port:
        return
    try:
        family, kind, protocol, _, where = _resolve(host, port)
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(where)
    except OSError as error:
        raise _refused(host, port, setting, error) from error


def _resolve(host: str, port: int) -> tuple[int, int, int, str, tuple[Any, ...]]:
    """Family, type, protocol, canonical name and address of the first match. Raises OSError."""
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except ValueError as error:  # a label of more than 63 letters, or a NUL
        raise OSError(f"{host!r} is no name of a host") from error


def _refused(host: str, port: int, setting: str, error: OSError) -> InvalidInputError:
    reason = (error.strerror or str(error)).lower()
    return InvalidInputError(setting, f"cannot listen on {address(host, port)}: {reason}; choose another {setting}")
