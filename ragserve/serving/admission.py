"""Whether a call may start: refused at once while loading, draining or full."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from prometheus_client import Gauge

from ragserve.errors import ResourceExhaustedError, UnavailableError

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

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Holds a place for the block. Raises UnavailableError or ResourceExhaustedError."""
        if self.phase is not Phase.SERVING:
            raise UnavailableError(f"the {self._service} is {self.phase.value}")
        if self._in_flight >= self._max_in_flight:
            raise ResourceExhaustedError(
                f"the {self._service} is full: {self._max_in_flight} calls at work (server.max_in_flight)",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    async def wait_idle(self) -> None:
        """Returns when no call is at work."""
        await self._idle.wait()

    def _count(self, change: int) -> None:
        self._in_flight += change
        if self._in_flight:
            self._idle.clear()
        else:
            self._idle.set()
