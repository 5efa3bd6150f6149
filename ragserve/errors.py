"""The exception tree of all services. It knows no transport: `ragserve.serving.status` maps it to gRPC."""

from __future__ import annotations


class RagserveError(Exception):
    """Something a caller should be told.

    `message` says what is wrong and what to do; `field` names the request field or file that is at fault.
    """

    def __init__(self, message: str, *, field: str = "", retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_seconds = retry_after_seconds


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
