"""grpc.health.v1 for the life of a server."""

from __future__ import annotations

from collections.abc import Sequence

import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

# SERVING from the first moment to the last: the process answers. For liveness probes.
LIVENESS = "liveness"


class Health:
    """Readiness under the empty name and the services' names; liveness under its own."""

    def __init__(self, service_names: Sequence[str]) -> None:
        self._names = ("", *service_names)
        self._servicer = health.aio.HealthServicer()

    async def register(self, server: grpc.aio.Server) -> None:
        """Adds the service to a server, not ready yet."""
        await self.set_ready(False)
        await self._servicer.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)

    async def set_ready(self, ready: bool) -> None:
        """SERVING or NOT_SERVING under every readiness name."""
        response = health_pb2.HealthCheckResponse
        for name in self._names:
            await self._servicer.set(name, response.SERVING if ready else response.NOT_SERVING)
