"""Whether a call may start: refused at once while loading, draining or full."""

from __future__ import annotations

import asyncio
from enum import Enum

from prometheus_client import Gauge

from ragserve.errors import ResourceExhaustedError, UnavailableError
from ragserve.printable import counted

# Told to refused callers; calls take from milliseconds to seconds.
RETRY_AFTER_SECONDS = 0.5


class Phase(Enum):
    """The life of a server."""

    LOADING = "loading"
    SERVING = "serving"
    DRAINING = "shutting down"


class Admission:
    """Counts the calls at work and refuses those that may not start."""

    def __init__(self, service: str, max_in_flight: int, gauge: Gauge) -> None:
        self._service = service
        self._max_in_flight = max_in_flight
        self._in_flight = 0
        gauge.set_function(lambda: self._in_flight)
        self._idle = asyncio.Event()
        self._idle.set()
        self.phase = Phase.LOADING

    def admit(self) -> None:
        """Takes a place, until `release`. Raises UnavailableError or ResourceExhaustedError."""
        if self.phase is not Phase.SERVING:
            raise UnavailableError(f"the {self._service} is {self.phase.value}")
        if self._in_flight >= self._max_in_flight:
            raise ResourceExhaustedError(
                f"the {self._service} is full: {counted(self._max_in_flight, 'call')} at work (server.max_in_flight)",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        self._in_flight += 1
        self._idle.clear()

    def release(self) -> None:
        """Gives a place back."""
        self._in_flight -= 1
        if not self._in_flight:
            self._idle.set()

    async def wait_idle(self) -> None:
        """Returns when no call is at work."""
        await self._idle.wait()
