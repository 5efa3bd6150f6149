"""Between the knowledge client's dataclasses and protobuf messages: passages, lookups, and what was found."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

import numpy as np

from ragserve import arguments
from ragserve.errors import InvalidInputError
from ragserve.filters import DEFAULT_K
from ragserve.keywords import RETRIEVER, in_keywords
from ragserve.knowledge import Lookup, LookupResult, NewPassage, Query, QueryPassages, StreamedLookup
from ragserve.nothing_found import FilterKeys, explanation
from ragserve.reasons import reason_of
from ragserve.requests import set_field, set_required, set_search
from ragserve.responses import metadata, timings_seconds
from ragserve.results import Passage
from ragserve.serving.convert import nothing_found_from_proto
from ragserve.serving.status import code_of_number, error_of
from ragserve.v1 import common_pb2
from ragserve.v1 import retriever_pb2 as pb
from ragserve.vectors import vector_bytes

# A part of an upsert: far below the 64 MiB that a service takes, and large enough that parts cost nothing.
PART_PASSAGES = 256
PART_BYTES = 2**20

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Parts:
    """The requests of an upsert; iterating tells `progress` how many passages are sent, of how many.

    gRPC iterates in its own thread or task and hides what `progress` raises there: `raised` keeps it.
    """

    parts: Sequence[pb.UpsertPassagesRequest]
    progress: Progress | None = None
    raised: list[Exception] = field(default_factory=list)

    def __iter__(self) -> Iterator[pb.UpsertPassagesRequest]:
        sent, total = 0, sum(len(part.passages) for part in self.parts)
        for part in self.parts:
            yield part
            sent += len(part.passages)
            if self.progress is not None:
                try:
                    self.progress(sent, total)
                except Exception as error:
                    self.raised.append(error)
                    raise


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
    new = arguments.record(path, path, NewPassage, given)
    message = pb.NewPassage()
    for name in ("id", "title", "text"):
        set_required(message.passage, name, getattr(new, name), f"{path}.")
    set_field(message.passage, "metadata_json", _json(f"{path}.metadata", new.metadata), f"{path}.", f"{path}.metadata")
    if new.vector is not None:
        message.vector = vector_bytes(f"{path}.vector", new.vector)
    return message


def _json(name: str, values: Mapping[str, Any] | None) -> str:
    if values is None:
        return ""
    if not isinstance(values, Mapping):
        raise arguments.refused(name, name, values, "a mapping")
    if not values:
        return ""
    try:
        return json.dumps(dict(values), ensure_ascii=False, allow_nan=False, default=_json_value)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(name, f"{name} cannot be kept as JSON: {reason_of(error)}") from error


def _json_value(value: object) -> Any:
    """A date as ISO 8601; numbers, booleans and arrays of numpy as Python's own."""
    found = arguments.plain(value)
    if isinstance(found, date):
        return found.isoformat()
    if isinstance(found, bool | int | float | str):
        return found
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"a value of type {type(value).__name__}")


def lookup_to_proto(lookup: Lookup) -> pb.RetrieverServiceRetrieveRequest:
    """The request of a lookup. Raises InvalidInputError where it cannot be sent."""
    request = pb.RetrieverServiceRetrieveRequest()
    for number, query in enumerate(_queries(lookup.queries)):
        message, path = request.queries.add(), f"queries[{number}]"
        if isinstance(query, str | bytes) or query is None:
            set_required(message, "text", query, f"{path}.")
        else:
            message.vector = vector_bytes(f"{path}.vector", query)
    set_field(request, "k", DEFAULT_K if lookup.k is None else lookup.k)
    request.allow_fewer = lookup.k is None
    set_field(request, "knowledge_version", lookup.knowledge_version)
    options = {name: getattr(lookup, name) for name in ("nprobe", "ef_search", "search_kind", "lexical_weight")}
    search = common_pb2.SearchOptions()
    set_search(search, lookup.filter, "options.", **options)
    if search.ListFields():
        request.options.CopyFrom(search)
    return request


def stream_request(number: int, lookup: Lookup | Query) -> pb.RetrieveStreamRequest:
    """The request of a lookup on a stream; a query alone is one with everything by default."""
    request = lookup if isinstance(lookup, Lookup) else Lookup(lookup)
    return pb.RetrieveStreamRequest(id=number, request=lookup_to_proto(request))


def _queries(given: Any) -> Iterable[Any]:
    """The queries. A single text or vector is one query."""
    if isinstance(given, str) or (isinstance(given, np.ndarray) and given.ndim == 1):
        return [given]
    return arguments.items("queries", "queries", given, "texts and vectors")


def lookup_result(response: pb.RetrieverServiceRetrieveResponse) -> LookupResult:
    """What was found."""
    return LookupResult(
        tuple(
            QueryPassages(
                tuple(_found(one) for one in result.passages),
                result.decoded_query,
                _nothing_found(result, response.knowledge_version),
            )
            for result in response.results
        ),
        response.knowledge_version,
        timings_seconds(response.timings),
        tuple(response.warnings),
    )


def _nothing_found(result: pb.QueryResult, version: int) -> str:
    reason = nothing_found_from_proto(result.nothing_found)
    keys = FilterKeys(*map(tuple, (result.unknown_keys, result.metadata_keys, result.nested_keys, result.number_keys)))
    return explanation(reason, version, keys=keys) if reason else ""


def _found(message: common_pb2.ScoredPassage) -> Passage:
    one = message.passage
    prior = float(np.exp(message.log_prior))
    return Passage(one.id, one.title, one.text, message.score, prior, None, metadata(one.metadata_json))


def streamed(response: pb.RetrieveStreamResponse) -> StreamedLookup:
    """The outcome of one request of a stream."""
    if response.HasField("response"):
        return StreamedLookup(response.id, lookup_result(response.response))
    error = response.error
    code = code_of_number(error.code)
    raised = error_of(code, error.message, error.field, error.retry_after_seconds or None)
    return StreamedLookup(response.id, error=in_keywords(raised, RETRIEVER))
