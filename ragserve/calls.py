"""What the clients do around a call: its deadline, its errors, and the pauses before it is tried again."""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import grpc

from ragserve.errors import InvalidInputError, RagserveError
from ragserve.serving.status import error_from_rpc

FIRST_PAUSE_SECONDS = 0.1  # where the service does not say when to come back
LONGEST_PAUSE_SECONDS = 5.0

T = TypeVar("T")
Errors = tuple[type[RagserveError], ...]


def deadline(default: float | None, chosen: float | None) -> float | None:
    """Seconds that a call may take. Raises InvalidInputError unless they are above 0."""
    if chosen is None:
        return default
    if not chosen > 0:
        raise InvalidInputError("timeout_seconds", f"must be above 0, not {chosen!r}")
    return chosen


@contextmanager
def typed_errors() -> Iterator[None]:
    """Raises the error of `ragserve.errors` that a failed call stands for."""
    try:
        yield
    except grpc.RpcError as error:
        raise error_from_rpc(error) from error


@dataclass(frozen=True)
class TimeLeft:
    """Until when something must be done, on the monotonic clock."""

    until: float

    @classmethod
    def of(cls, seconds: float | None) -> TimeLeft:
        """So many seconds from now; None: no limit."""
        return cls(math.inf if seconds is None else time.monotonic() + seconds)

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
        if self.max_attempts < 1:
            raise InvalidInputError("max_attempts", f"max_attempts is {self.max_attempts}; it must be at least 1")

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
