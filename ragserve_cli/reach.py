"""Says what to do when a service does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ragserve.errors import DeadlineExceededError, UnavailableError


@contextmanager
def reached(*targets: str, options: str = "--target", timeout: float | None = None) -> Iterator[None]:
    """Adds to an UnavailableError where was asked, how to start the services, and options that name another place.

    A DeadlineExceededError gets the `timeout`, in seconds, of the option --timeout.
    """
    try:
        yield
    except UnavailableError as error:
        raise UnavailableError(
            f"no answer from {' or '.join(targets)} ({error.message}): start the services with 'ragserve up', or name "
            f"another place with {options}",
            retry_after_seconds=error.retry_after_seconds,
        ) from error
    except DeadlineExceededError as error:
        waited = "in time" if timeout is None else f"within {timeout:g} s (--timeout)"
        advice = "" if timeout is None else ": allow more with --timeout SECONDS"
        raise DeadlineExceededError(f"no answer from {' or '.join(targets)} {waited}{advice}") from error
