"""Says what to do when a service does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ragserve.errors import UnavailableError


@contextmanager
def reached(*targets: str) -> Iterator[None]:
    """Adds to an UnavailableError where was asked and how to start the services."""
    try:
        yield
    except UnavailableError as error:
        raise UnavailableError(
            f"no answer from {' or '.join(targets)} ({error.message}): start the services with 'ragserve up', or name "
            "another place with --target",
            retry_after_seconds=error.retry_after_seconds,
        ) from error
