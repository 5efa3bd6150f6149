"""grpc.health.v1 for the life of a server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

# SERVING from the first moment to the last: the process answers. For liveness probes.
LIVENESS = "liveness"


class _Servicer(health.aio.HealthServicer):  # type: ignore[misc]
    """The standard servicer, whose watches can be ended."""

    def __init__(self) -> None:
        super().__init__()
        self._watches: set[asyncio.Task[None]] = set()

    async def Watch(self, request: Any, context: Any) -> None:  # noqa: N802
        """Sends the status and its changes until the caller leaves or the watches are ended."""
        watch = asyncio.create_task(super().Watch(request, context))
        self._watches.add(watch)
        try:
            await asyncio.wait((watch,))
        finally:
            watch.cancel()
            self._watches.discard(watch)

    def end_watches(self) -> None:
        """Ends the streams of all watches."""
        for watch in self._watches:
            watch.cancel()


class Health:
    """Readiness under the empty name and the services' names; liveness under its own."""

    def __init__(self, service_names: Sequence[str]) -> None:
        self._names = ("", *service_names)
        self._servicer = _Servicer()

    async def register(self, server: grpc.aio.Server) -> None:
        """Adds the service to a server, not ready yet."""
        await self.set_ready(False)
        await self._servicer.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    def end_watches(self) -> None:
        """Ends the streams of those who watch; they never end by themselves."""
        self._servicer.end_watches()

    async def set_ready(self, ready: bool) -> None:
        """SERVING or NOT_SERVING under every readiness name."""
        response = health_pb2.HealthCheckResponse
        for name in self._names:
            await self._servicer.set(name, response.SERVING if ready else response.NOT_SERVING)
