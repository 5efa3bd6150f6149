"""Request bytes to messages, with an error that names the field where text is not UTF-8, and replies to bytes."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from google.protobuf import empty_pb2, unknown_fields
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

from ragserve.errors import InvalidInputError, ResourceExhaustedError
from ragserve.serving.logs import fields

LENGTH_DELIMITED = 2  # wire type of strings and messages

MESSAGE_LIMIT = "server.max_message_bytes"

Deserializer = Callable[[bytes], Any]
Serializer = Callable[[Any], bytes]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Malformed:
    """Stands for a request that could not be read, until the handler raises its error.

    gRPC answers INTERNAL when a deserializer raises.
    """

    error: InvalidInputError


def tolerant(deserialize: Deserializer) -> Deserializer:
    """The deserializer, but giving Malformed instead of raising. `deserialize` is a message's FromString."""
    descriptor: Descriptor = deserialize.__self__.DESCRIPTOR  # type: ignore[attr-defined]

    def read(data: bytes) -> Any:
        try:
            return deserialize(data)
        except DecodeError:
            return Malformed(_explain(descriptor, data))

    return read


def sized(serialize: Serializer, most_bytes: int) -> Serializer:
    """The serializer, but raising ResourceExhaustedError for a reply that gRPC would not send.

    gRPC itself answers with a status that names no cause, and nobody on the server hears of it.
    """

    def write(reply: Any) -> bytes:
        if isinstance(reply, bytes):
            return reply
        data = serialize(reply)
        require_sendable(len(data), most_bytes)
        return data

    return write


def require_sendable(size: int, most_bytes: int) -> None:
    """Raises ResourceExhaustedError, and logs, if a reply is larger than a message may be."""
    if size <= most_bytes:
        return
    log.warning("a reply is too large to be sent", extra=fields(bytes=size, max_message_bytes=most_bytes))
    raise ResourceExhaustedError(
        f"the reply has {size} bytes; a message may have {most_bytes} (server.max_message_bytes). Ask for less: fewer "
        "passages (k, n_docs), queries, ids or versions; or raise the limit of services and clients",
        field=MESSAGE_LIMIT,
    )


def checked(request: Any) -> Any:
    """The request itself. Raises the error of a malformed one."""
    if isinstance(request, Malformed):
        raise request.error
    return request


async def checked_all(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    """The requests of a stream. Raises the error of a malformed one."""
    async for request in requests:
        yield checked(request)


def _explain(descriptor: Descriptor, data: bytes) -> InvalidInputError:
    field = _first_bad_text(descriptor, data)
    if field is None:
        return InvalidInputError("request", f"the bytes are not a {descriptor.full_name} message")
    return InvalidInputError(field, "the text is not UTF-8")


def _first_bad_text(descriptor: Descriptor, data: bytes) -> str | None:
    """Path of the first string field that is not UTF-8, or None."""
    raw = empty_pb2.Empty()
    try:
        raw.ParseFromString(data)
    except DecodeError:
        return None
    items: Any = unknown_fields.UnknownFieldSet(raw)
    for item in items:
        field: FieldDescriptor | None = descriptor.fields_by_number.get(item.field_number)
        if field is None or item.wire_type != LENGTH_DELIMITED:
            continue
        if field.message_type is not None:
            inner = _first_bad_text(field.message_type, item.data)
            if inner is not None:
                return f"{field.name}.{inner}"
        elif field.type == FieldDescriptor.TYPE_STRING and not _is_utf8(item.data):
            return field.name
    return None


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
