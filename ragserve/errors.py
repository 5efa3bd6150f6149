"""The exception tree of all services. It knows no transport: `ragserve.serving.status` maps it to gRPC."""

from __future__ import annotations

import re

# Where a field stands in a request; callers of the Python clients know it without that.
GROUPS = ("options.", "search.")
# Fields whose keyword in those clients has another name.
KEYWORDS = {
    "n_docs": "docs",
    "num_beams": "beams",
    "options.num_beams": "beams",
    "search.kind": "search_kind",
    "options.kind": "search_kind",
}


class RagserveError(Exception):
    """Something a caller should be told.

    `message` says what is wrong and what to do; `field` names the request field or file that is at fault. The text of
    the error has both. `outcome_unknown` is set by the clients where a call may have had its effect all the same: its
    connection or its time ended before the answer came.
    """

    outcome_unknown = False
    sent = ""  # the message in the names of the wire, where a client has put its keywords into `message`

    def __init__(self, message: str, *, field: str = "", retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        named = self.sent or not self.field or names(self.message, self.field)
        return self.message if named else f"{self.field}: {self.message}"

    def __reduce__(self) -> tuple[object, ...]:
        """Pickles and copies without `__init__`, whose arguments differ between subclasses."""
        return _restored, (type(self), self.args, self.__dict__)


def names(message: str, field: str) -> bool:
    """Whether a message says the name of its field already, as a whole word and not as a folder of a path."""
    if re.search(rf"(?<![\w./\[]){re.escape(field)}(?![\w\[]|\.\w)", message):
        return True
    short = [field.removeprefix(group) for group in GROUPS if field.startswith(group)]
    if field in KEYWORDS:
        short.append(KEYWORDS[field])
    return any(re.match(rf"{re.escape(name)}(?![\w\[]|\.\w)", message) for name in short)


def _restored(cls: type[RagserveError], args: tuple[object, ...], state: dict[str, object]) -> RagserveError:
    error = cls.__new__(cls, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class InvalidInputError(RagserveError):
    """A request or setting is wrong; `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message, field=field)


class NotFoundError(RagserveError):
    """An unknown passage, version or file."""


class FailedPreconditionError(RagserveError):
    """The request is fine, but not for what is loaded here (wrong kind of checkpoint, empty index)."""


class AbortedError(RagserveError):
    """A race was lost; trying again may win."""


class ResourceExhaustedError(RagserveError):
    """A queue is full or a limit is reached; `retry_after_seconds` says when to come back."""


class UnavailableError(RagserveError):
    """Loading, draining, or a downstream service is gone."""


class DeadlineExceededError(RagserveError):
    """The deadline passed, or cannot be met."""


class DataLossError(RagserveError):
    """A file's checksum is wrong."""


class UnauthenticatedError(RagserveError):
    """No or unknown credentials."""


class PermissionDeniedError(RagserveError):
    """Known credentials that may not do this."""


class InternalError(RagserveError):
    """Our bug. The client gets an id, the log the traceback."""
