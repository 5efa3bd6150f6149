"""Says what to do when a service does not answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from ragserve.errors import DeadlineExceededError, UnavailableError

STARTING = re.compile(r"is loading|it is starting or stopping")  # as services and `ragserve.failures` say it


@contextmanager
def reached(*targets: str, options: str = "--target", timeout: float | None = None) -> Iterator[None]:
    """Adds to an UnavailableError how to start the services, and the options that name another place.

    A DeadlineExceededError gets the `timeout`, in seconds, of the option --timeout.
    """
    try:
        yield
    except UnavailableError as error:
        if STARTING.search(error.message):
            where = "" if any(target in error.message for target in targets) else f" ({' or '.join(targets)})"
            raise UnavailableError(
                f"{error.message.replace('is loading', 'is still loading')}{where}: try again in a moment",
                retry_after_seconds=error.retry_after_seconds,
            ) from error
        named = any(target in error.message for target in targets)
        what = error.message if named else f"no answer from {' or '.join(targets)} ({error.message})"
        start = " Start" if what.endswith("?") else ": start"
        raise UnavailableError(
            f"{what}{start} the services with 'ragserve up', or name another place with {options}",
            retry_after_seconds=error.retry_after_seconds,
        ) from error
    except DeadlineExceededError as error:
        waited = "in time" if timeout is None else f"within {timeout:g} s (--timeout)"
        advice = "" if timeout is None else ": allow more with --timeout SECONDS"
        raise DeadlineExceededError(f"no answer from {' or '.join(targets)} {waited}{advice}") from error
