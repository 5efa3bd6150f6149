"""Says what to do when a service does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ragserve.errors import UnavailableError


@contextmanager
def reached(*targets: str, options: str = "--target") -> Iterator[None]:
    """Adds to an UnavailableError where was asked, how to start the services, and options that name another place."""
    try:
        yield
    except UnavailableError as error:
        raise UnavailableError(
            f"no answer from {' or '.join(targets)} ({error.message}): start the services with 'ragserve up', or name "
            f"another place with {options}",
            retry_after_seconds=error.retry_after_seconds,
        ) from error
