"""One table between the exception tree and gRPC status codes, with rich details in both directions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]

from ragserve import errors

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "ragserve"
# What gRPC says of a message over its limit.
TOO_LARGE = re.compile(r"message larger than max \((\d+) vs\. (\d+)\)")
# Details travel in HTTP/2 headers, which are limited to 8 KiB in all; percent-encoded text takes three times its bytes.
MAX_TEXT_BYTES = 600
CUT = " … "

CODE_OF: Mapping[type[errors.RagserveError], grpc.StatusCode] = MappingProxyType(
    {
        errors.InvalidInputError: grpc.StatusCode.INVALID_ARGUMENT,
        errors.NotFoundError: grpc.StatusCode.NOT_FOUND,
        errors.FailedPreconditionError: grpc.StatusCode.FAILED_PRECONDITION,
        errors.AbortedError: grpc.StatusCode.ABORTED,
        errors.ResourceExhaustedError: grpc.StatusCode.RESOURCE_EXHAUSTED,
        errors.UnavailableError: grpc.StatusCode.UNAVAILABLE,
        errors.DeadlineExceededError: grpc.StatusCode.DEADLINE_EXCEEDED,
        errors.DataLossError: grpc.StatusCode.DATA_LOSS,
        errors.UnauthenticatedError: grpc.StatusCode.UNAUTHENTICATED,
        errors.PermissionDeniedError: grpc.StatusCode.PERMISSION_DENIED,
        errors.InternalError: grpc.StatusCode.INTERNAL,
    }
)

ERROR_OF: Mapping[grpc.StatusCode, type[errors.RagserveError]] = MappingProxyType(
    {
        **{code: error for error, code in CODE_OF.items()},
        grpc.StatusCode.OUT_OF_RANGE: errors.InvalidInputError,
        grpc.StatusCode.ALREADY_EXISTS: errors.AbortedError,
        grpc.StatusCode.UNIMPLEMENTED: errors.FailedPreconditionError,
        grpc.StatusCode.CANCELLED: errors.UnavailableError,
    }
)


@dataclass(frozen=True)
class Status:
    """A gRPC status: code, text and the trailing metadata that holds its details."""

    code: grpc.StatusCode
    text: str
    trailing_metadata: tuple[tuple[str, bytes], ...]


def code_of(error: errors.RagserveError) -> grpc.StatusCode:
    """The status code of an error, by its nearest class in the table."""
    return next((CODE_OF[cls] for cls in type(error).__mro__ if cls in CODE_OF), grpc.StatusCode.INTERNAL)


def status_of(error: errors.RagserveError) -> Status:
    """The status that a client gets for an error."""
    code = code_of(error)
    text = _shortened(str(error))
    rich = status_pb2.Status(code=code.value[0], message=text, details=[_packed(d) for d in _details(error)])
    return Status(code, text, ((DETAILS_KEY, rich.SerializeToString()),))


def error_from_rpc(error: grpc.RpcError) -> errors.RagserveError:
    """The error that a failed call stands for; the reverse of `status_of`."""
    code, text = error.code(), error.details() or ""
    field, retry_after = _read_details(error.trailing_metadata() or ())
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and (large := TOO_LARGE.search(text)):
        size, most = large.groups()
        text = f"a message has {size} bytes, and may have {most} (server.max_message_bytes): ask for less or send less"
        return error_of(code, text, "server.max_message_bytes", None)
    if field:
        text = text.removeprefix(f"{field}: ")
    return error_of(code, text or code.name.lower(), field, retry_after)


def is_from_service(error: grpc.RpcError) -> bool:
    """Whether one of our services sent this error; gRPC's own, such as a refused connection, have no details."""
    metadata: Iterable[Any] = error.trailing_metadata() or ()
    return any(key == DETAILS_KEY for key, _ in metadata)


def error_of(code: grpc.StatusCode, text: str, field: str, retry_after_seconds: float | None) -> errors.RagserveError:
    """The error of a status code."""
    cls = ERROR_OF.get(code, errors.InternalError)
    if cls is errors.InvalidInputError:
        return errors.InvalidInputError(field, text)
    return cls(text, field=field, retry_after_seconds=retry_after_seconds)


def code_of_number(number: int) -> grpc.StatusCode:
    """The status code of a number; UNKNOWN for one that is none."""
    return next((code for code in grpc.StatusCode if code.value[0] == number), grpc.StatusCode.UNKNOWN)


def _details(error: errors.RagserveError) -> Sequence[message.Message]:
    """ErrorInfo always; BadRequest and RetryInfo where they say something."""
    metadata = {"field": error.field} if error.field else {}
    details: list[message.Message] = [
        error_details_pb2.ErrorInfo(reason=code_of(error).name, domain=DOMAIN, metadata=metadata)
    ]
    if isinstance(error, errors.InvalidInputError):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=_shortened(error.message)
        )
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_seconds is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(round(error.retry_after_seconds * 1e9))
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    return details


def _shortened(text: str) -> str:
    """At most MAX_TEXT_BYTES of the text, always valid UTF-8. Where that is less, dots stand for the middle."""
    whole = text.encode("utf-8", "replace")
    if len(whole) <= MAX_TEXT_BYTES:
        return whole.decode()
    kept = (MAX_TEXT_BYTES - len(CUT.encode())) // 2
    return CUT.join(part.decode("utf-8", "ignore") for part in (whole[:kept], whole[-kept:]))


def _packed(detail: message.Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(detail)
    return packed


def _read_details(metadata: Iterable[Any]) -> tuple[str, float | None]:
    """The field and the retry delay in seconds; empty and None where a server sent none or sent garbage."""
    rich = status_pb2.Status()
    try:
        rich.ParseFromString(next((_as_bytes(value) for key, value in metadata if key == DETAILS_KEY), b""))
    except message.DecodeError:
        return "", None
    field, retry_after = "", None
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    for detail in rich.details:
        if detail.Is(info.DESCRIPTOR) and detail.Unpack(info):
            field = field or info.metadata.get("field", "")
        elif detail.Is(bad.DESCRIPTOR) and detail.Unpack(bad) and bad.field_violations:
            field = field or bad.field_violations[0].field
        elif detail.Is(retry.DESCRIPTOR) and detail.Unpack(retry):
            retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    return field, retry_after


def _as_bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode()
