"""How much time a call has left."""

from __future__ import annotations

from typing import Protocol


class HasDeadline(Protocol):
    """What a servicer's context offers."""

    def time_remaining(self) -> float | None:
        """Seconds to the deadline, or None."""


def remaining_seconds(context: HasDeadline) -> float | None:
    """Seconds to the caller's deadline, never below 0; None when the caller set none."""
    remaining = context.time_remaining()
    return None if remaining is None else max(0.0, remaining)
