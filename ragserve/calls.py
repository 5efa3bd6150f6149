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
    """Until when something must be done, on the monotonic clock, and how many seconds it was given."""

    until: float
    limit: float | None = None

    @classmethod
    def of(cls, seconds: float | None) -> TimeLeft:
        """So many seconds from now; None: no limit."""
        return cls(math.inf if seconds is None else time.monotonic() + seconds, seconds)

    def seconds(self) -> float | None:
        """What is left, never below 0; None: no limit."""
        return None if math.isinf(self.until) else max(0.0, self.until - time.monotonic())


@dataclass(frozen=True)
class Retries:
    """How often something is tried, and how long the pauses are.

    They start at what the error says (`retry_after_seconds`), double each time, and are shortened by up to a half at
    random, so that those who lost the same race do not meet again.
    """

    max_attempts: int
    longest_pause_seconds: float = LONGEST_PAUSE_SECONDS

    def __post_init__(self) -> None:
        arguments.whole("max_attempts", "max_attempts", self.max_attempts, most=MOST_ATTEMPTS, least=1)

    def pause(self, failed: int, error: RagserveError, left: TimeLeft) -> float:
        """Seconds to wait after the attempt of that number. Raises the error when no time is left after them."""
        first = error.retry_after_seconds or FIRST_PAUSE_SECONDS
        pause = min(self.longest_pause_seconds, first * 2.0 ** (failed - 1)) * random.uniform(0.5, 1.0)  # noqa: S311
        if time.monotonic() + pause >= left.until:
            raise error
        return pause

    def run(self, attempt: Callable[[], T], retried: Errors, left: TimeLeft) -> T:
        """What an attempt returns that raises none of the `retried` errors. Raises the last one's error."""
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
