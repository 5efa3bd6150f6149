"""What the clients do around a call: its deadline, and the pauses before it is tried again."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from ragserve import arguments
from ragserve.errors import RagserveError

FIRST_PAUSE_SECONDS = 0.1  # where the service does not say when to come back
LONGEST_PAUSE_SECONDS = 5.0
MOST_ATTEMPTS = 10**9

T = TypeVar("T")
Errors = tuple[type[RagserveError], ...]


def deadline(default: float | None, chosen: float | None) -> float | None:
    """Seconds that a call may take; None: no limit. Raises InvalidInputError unless they are above 0."""
    return default if chosen is None else arguments.seconds("timeout_seconds", chosen)


@dataclass(frozen=True)
class TimeLeft:
    """A deadline on the monotonic clock, and the seconds that were given until it."""

    until: float
    limit: float | None = None

    @classmethod
    def of(cls, seconds: float | None) -> TimeLeft:
        """A deadline that many seconds from now; None: no limit."""
        return cls(math.inf if seconds is None else time.monotonic() + seconds, seconds)

    def seconds(self) -> float | None:
        """What is left, never below 0; None: no limit."""
        return None if math.isinf(self.until) else max(0.0, self.until - time.monotonic())


@dataclass(frozen=True)
class Retries:
    """How often something is tried, and how long the pauses are.

    Pauses start at the error's `retry_after_seconds`, double each time, and are shortened by up to a half at random, so
    that clients that lost the same race do not meet again.
    """

    max_attempts: int
    longest_pause_seconds: float = LONGEST_PAUSE_SECONDS

    def __post_init__(self) -> None:
        arguments.whole("max_attempts", "max_attempts", self.max_attempts, most=MOST_ATTEMPTS, least=1)

    def pause(self, failed: int, error: RagserveError, left: TimeLeft) -> float:
        """Seconds to wait after `failed` attempts. Raises the error if the deadline would pass meanwhile."""
        first = error.retry_after_seconds or FIRST_PAUSE_SECONDS
        pause = min(self.longest_pause_seconds, first * 2.0 ** (failed - 1)) * random.uniform(0.5, 1.0)  # noqa: S311
        if time.monotonic() + pause >= left.until:
            raise error
        return pause

    def run(self, attempt: Callable[[], T], retried: Errors, left: TimeLeft) -> T:
        """The result of the first attempt that raises none of the `retried` errors, or the last attempt's error."""
        for failed in range(1, self.max_attempts):
            try:
                return attempt()
            except retried as error:
                time.sleep(self.pause(failed, error, left))
        return attempt()

    async def run_async(self, attempt: Callable[[], Awaitable[T]], retried: Errors, left: TimeLeft) -> T:
        """The same for asyncio."""
        for failed in range(1, self.max_attempts):
            try:
                return await attempt()
            except retried as error:
                pause = self.pause(failed, error, left)
            await asyncio.sleep(pause)
        return await attempt()
