from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from ragserve import errors
from ragserve.serving.status import CODE_OF, DETAILS_KEY, MAX_TEXT_BYTES, code_of, error_from_rpc, status_of


class Failed(grpc.RpcError):
    """A failed call, as the blocking and the asyncio client raise it."""

    def __init__(self, code: grpc.StatusCode, text: str | None, metadata: Any = ()) -> None:
        self._code, self._text, self._metadata = code, text, metadata

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str | None:
        return self._text

    def trailing_metadata(self) -> Any:
        return self._metadata


def every_error() -> list[type[errors.RagserveError]]:
    return [cls for cls in vars(errors).values() if isinstance(cls, type) and cls is not errors.RagserveError]


def test_every_error_has_a_code_of_its_own() -> None:
    assert set(CODE_OF) == set(every_error())
    assert len(set(CODE_OF.values())) == len(CODE_OF)


def test_subclasses_have_the_code_of_their_parent() -> None:
    class NoSuchVersionError(errors.NotFoundError):
        pass

    assert code_of(NoSuchVersionError("7")) is grpc.StatusCode.NOT_FOUND
    assert code_of(errors.RagserveError("?")) is grpc.StatusCode.INTERNAL


def test_the_details_that_other_languages_read() -> None:
    status = status_of(errors.InvalidInputError("options.num_beams", "must be at most 64"))
    rich = status_pb2.Status.FromString(dict(status.trailing_metadata)[DETAILS_KEY])
    assert rich.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert rich.message == status.text == "options.num_beams: must be at most 64"
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    assert rich.details[0].Unpack(info)
    assert rich.details[1].Unpack(bad)
    assert (info.reason, info.domain, dict(info.metadata)) == (
        "INVALID_ARGUMENT",
        "ragserve",
        {"field": "options.num_beams"},
    )
    assert bad.field_violations[0].field == "options.num_beams"


def test_retry_info() -> None:
    status = status_of(errors.ResourceExhaustedError("full", retry_after_seconds=0.25))
    rich = status_pb2.Status.FromString(dict(status.trailing_metadata)[DETAILS_KEY])
    retry = error_details_pb2.RetryInfo()
    assert rich.details[1].Unpack(retry)
    assert retry.retry_delay.ToTimedelta().total_seconds() == 0.25


def test_long_messages_fit_into_headers() -> None:
    status = status_of(errors.InvalidInputError("question", "é" * 100_000))
    assert len(status.text.encode()) <= MAX_TEXT_BYTES
    assert " … " in status.text
    assert len(dict(status.trailing_metadata)[DETAILS_KEY]) < 2_000
    said = status_of(errors.InvalidInputError("id", f"id {'x' * 2000} is taken: choose another one")).text
    assert said.startswith("id xxx")
    assert said.endswith("choose another one")


def test_a_message_that_names_its_field_is_left_as_it_is() -> None:
    status = status_of(errors.InvalidInputError("n_docs", "n_docs must be at least 1"))
    assert status.text == "n_docs must be at least 1"
    back = error_from_rpc(Failed(status.code, status.text, status.trailing_metadata))
    assert (back.field, back.message) == ("n_docs", "n_docs must be at least 1")


@pytest.mark.parametrize("metadata", [(), None, ((DETAILS_KEY, b"\xff garbage"),), (("other", "text"),)])
def test_statuses_without_our_details(metadata: Any) -> None:
    error = error_from_rpc(Failed(grpc.StatusCode.UNAVAILABLE, "no connection", metadata))
    assert isinstance(error, errors.UnavailableError)
    assert (error.message, error.field, error.retry_after_seconds) == ("no connection", "", None)


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (grpc.StatusCode.UNKNOWN, errors.InternalError),
        (grpc.StatusCode.CANCELLED, errors.UnavailableError),
        (grpc.StatusCode.UNIMPLEMENTED, errors.FailedPreconditionError),
        (grpc.StatusCode.OUT_OF_RANGE, errors.InvalidInputError),
        (grpc.StatusCode.ALREADY_EXISTS, errors.AbortedError),
    ],
)
def test_codes_that_we_never_send(code: grpc.StatusCode, cls: type[errors.RagserveError]) -> None:
    assert type(error_from_rpc(Failed(code, "text"))) is cls


def test_no_text_at_all() -> None:
    assert error_from_rpc(Failed(grpc.StatusCode.INTERNAL, None)).message == "internal"
