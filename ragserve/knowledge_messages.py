"""Between the knowledge client's dataclasses and protobuf messages: passages, lookups, and what was found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import date
from typing import Any

import numpy as np

from ragserve.errors import InvalidInputError
from ragserve.knowledge import Lookup, LookupResult, NewPassage, Query, QueryPassages, StreamedLookup
from ragserve.requests import set_field, set_search
from ragserve.responses import metadata, timings_seconds
from ragserve.results import Passage
from ragserve.serving.status import code_of_number, error_of
from ragserve.v1 import common_pb2
from ragserve.v1 import retriever_pb2 as pb

# A part of an upsert: far below the 64 MiB that a service takes, and large enough that parts cost nothing.
PART_PASSAGES = 256
PART_BYTES = 2**20

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Parts:
    """The requests of an upsert; iterating tells `progress` how many passages are sent, of how many."""

    parts: Sequence[pb.UpsertPassagesRequest]
    progress: Progress | None = None

    def __iter__(self) -> Iterator[pb.UpsertPassagesRequest]:
        sent, total = 0, sum(len(part.passages) for part in self.parts)
        for part in self.parts:
            yield part
            sent += len(part.passages)
            if self.progress is not None:
                self.progress(sent, total)


def parts_of(messages: Iterable[pb.NewPassage]) -> Iterator[pb.UpsertPassagesRequest]:
    """The messages in parts of bounded number and size; a larger one goes alone."""
    part, size = pb.UpsertPassagesRequest(), 0
    for message in messages:
        length = message.ByteSize()
        if part.passages and (len(part.passages) == PART_PASSAGES or size + length > PART_BYTES):
            yield part
            part, size = pb.UpsertPassagesRequest(), 0
        part.passages.append(message)
        size += length
    if part.passages:
        yield part


def message_of(number: int, given: NewPassage | Mapping[str, Any]) -> pb.NewPassage:
    """The message of a passage. Raises InvalidInputError, naming `passages[number]`, where it cannot be sent."""
    path = f"passages[{number}]"
    if not isinstance(given, NewPassage):
        given = _passage(path, given)
    message = pb.NewPassage()
    for name in ("id", "title", "text"):
        set_field(message.passage, name, getattr(given, name), f"{path}.")
    set_field(message.passage, "metadata_json", _json(f"{path}.metadata", given.metadata), f"{path}.")
    if given.vector is not None:
        message.vector = _vector(f"{path}.vector", given.vector)
    return message


def _passage(path: str, given: Mapping[str, Any]) -> NewPassage:
    names = {field.name for field in fields(NewPassage)}
    try:
        values = dict(given)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(path, f"{path} is {given!r}; it must be a NewPassage or a mapping") from error
    for name in values:
        if name not in names:
            raise InvalidInputError(f"{path}.{name}", f"{path} has no {name!r}; it may have {', '.join(sorted(names))}")
    for name in ("id", "text"):
        if name not in values:
            raise InvalidInputError(f"{path}.{name}", f"{path}.{name} is missing")
    return NewPassage(**values)


def _json(field: str, values: Mapping[str, Any] | None) -> str:
    if not values:
        return ""
    if not isinstance(values, Mapping):
        raise InvalidInputError(field, f"{field} is {values!r}; it must be a mapping")
    try:
        return json.dumps(dict(values), ensure_ascii=False, allow_nan=False, default=_json_value)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(field, f"{field} cannot be kept as JSON: {error}") from error


def _json_value(value: object) -> str:
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError(f"a value of type {type(value).__name__}")


def _vector(field: str, vector: Any) -> bytes:
    try:
        values = np.asarray(vector, dtype="<f4")
    except (TypeError, ValueError) as error:
        raise InvalidInputError(field, f"{field} is no vector of numbers: {error}") from error
    if values.ndim != 1:
        raise InvalidInputError(field, f"{field} has the shape {values.shape}; it must have one dimension")
    return values.tobytes()


def lookup_to_proto(lookup: Lookup) -> pb.RetrieverServiceRetrieveRequest:
    """The request of a lookup. Raises InvalidInputError where it cannot be sent."""
    request = pb.RetrieverServiceRetrieveRequest()
    for number, query in enumerate(_queries(lookup.queries)):
        message, path = request.queries.add(), f"queries[{number}]"
        if isinstance(query, str):
            set_field(message, "text", query, f"{path}.")
        else:
            message.vector = _vector(f"{path}.vector", query)
    set_field(request, "k", lookup.k)
    set_field(request, "knowledge_version", lookup.knowledge_version)
    options = {name: getattr(lookup, name) for name in ("nprobe", "ef_search", "kind", "lexical_weight")}
    if lookup.filter or any(value not in (None, 0, "") for value in options.values()):
        set_search(request.options, lookup.filter, "options.", **options)
    return request


def stream_request(number: int, lookup: Lookup | Query) -> pb.RetrieveStreamRequest:
    """The request of a lookup on a stream; a query alone is one with everything by default."""
    request = lookup if isinstance(lookup, Lookup) else Lookup(lookup)
    return pb.RetrieveStreamRequest(id=number, request=lookup_to_proto(request))


def _queries(given: Any) -> Sequence[Any]:
    """The queries: one text or vector is one."""
    if isinstance(given, str) or (isinstance(given, np.ndarray) and given.ndim == 1):
        return [given]
    return list(given)


def lookup_result(response: pb.RetrieverServiceRetrieveResponse) -> LookupResult:
    """What was found."""
    return LookupResult(
        tuple(
            QueryPassages(tuple(_found(one) for one in result.passages), result.decoded_query)
            for result in response.results
        ),
        response.knowledge_version,
        timings_seconds(response.timings),
    )


def _found(message: common_pb2.ScoredPassage) -> Passage:
    one = message.passage
    prior = float(np.exp(message.log_prior))
    return Passage(one.id, one.title, one.text, message.score, prior, 0.0, metadata(one.metadata_json))


def streamed(response: pb.RetrieveStreamResponse) -> StreamedLookup:
    """The outcome of one request of a stream."""
    if response.HasField("response"):
        return StreamedLookup(response.id, lookup_result(response.response))
    error = response.error
    code = code_of_number(error.code)
    return StreamedLookup(
        response.id, error=error_of(code, error.message, error.field, error.retry_after_seconds or None)
    )
