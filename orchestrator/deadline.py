"""The deadline of a request, on the monotonic clock."""

from __future__ import annotations

import time
from dataclasses import dataclass

from ragserve.errors import DeadlineExceededError


@dataclass(frozen=True)
class Deadline:
    """A moment of the monotonic clock, in seconds."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The moment in so many seconds."""
        return cls(time.monotonic() + seconds)

    def remaining(self) -> float:
        """Seconds left, above 0. Raises DeadlineExceededError when there are none."""
        left = self.at - time.monotonic()
        if left <= 0:
            raise DeadlineExceededError("the deadline has passed")
        return left
