"""Between protobuf messages and the engine's dataclasses."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict

import numpy as np

from ragserve.errors import InvalidInputError, RagserveError
from ragserve.serving.convert import add_timings, nothing_found_to_proto, timings_to_proto
from ragserve.serving.metrics import StageTiming
from ragserve.serving.status import code_of
from ragserve.v1 import common_pb2, retriever_pb2
from retriever_svc.engine import Retrieval, RetrieverInfo
from retriever_svc.filters import Condition, Filter
from retriever_svc.kinds import LookupOptions, SearchKind
from retriever_svc.live.history import Version, VersionDiff
from retriever_svc.live.writer import Compaction, Deletion, Upsert
from retriever_svc.splitting import SplitOptions
from retriever_svc.types import Float32, Hit, NewPassage, Passage, Query, Truncated

FLOAT32_BYTES = 4
SPLIT_FIELDS = {"split_words": "split.words", "split_tokens": "split.tokens", "overlap": "split.overlap"}
KINDS = {
    common_pb2.SEARCH_KIND_DENSE: SearchKind.DENSE,
    common_pb2.SEARCH_KIND_BM25: SearchKind.BM25,
    common_pb2.SEARCH_KIND_WEIGHTED: SearchKind.WEIGHTED,
    common_pb2.SEARCH_KIND_RRF: SearchKind.RRF,
}


def queries_from_proto(messages: Iterable[retriever_pb2.Query]) -> list[Query]:
    """The queries of a request. Raises InvalidInputError for a query without content or with part of a float32."""
    return [_query(f"queries[{number}]", message) for number, message in enumerate(messages)]


def _query(field: str, message: retriever_pb2.Query) -> Query:
    kind = message.WhichOneof("query")
    if kind == "text":
        return Query(text=message.text)
    if kind is None:
        raise InvalidInputError(field, f"{field} has neither text nor vector")
    return Query(vector=_vector(f"{field}.vector", message.vector))


def _vector(field: str, message: bytes) -> Float32:
    if len(message) % FLOAT32_BYTES:
        raise InvalidInputError(field, f"{field} has {len(message)} bytes, which is no whole number of float32")
    return np.frombuffer(message, dtype="<f4").astype(np.float32)


def options_from_proto(message: common_pb2.SearchOptions, default: LookupOptions) -> LookupOptions:
    """The options of a request. Raises InvalidInputError for a kind that is not known."""
    kind = KINDS.get(message.kind, default.kind if message.kind == common_pb2.SEARCH_KIND_UNSPECIFIED else None)
    if kind is None:
        raise InvalidInputError("options.kind", f"options.kind is {message.kind}, which is no kind of search")
    return LookupOptions(
        Filter(tuple(_condition(condition) for condition in message.filter)),
        message.nprobe,
        message.ef_search,
        kind,
        message.lexical_weight if message.HasField("lexical_weight") else default.lexical_weight,
    )


def _condition(message: common_pb2.Condition) -> Condition:
    test = message.WhichOneof("test")
    if test == "equals":
        return Condition(message.key, equals=message.equals)
    if test == "any_of":
        return Condition(message.key, any_of=tuple(message.any_of.values))
    if test == "none_of":
        return Condition(message.key, none_of=tuple(message.none_of.values))
    bounds = {descriptor.name: value for descriptor, value in message.range.ListFields()}
    return Condition(message.key, **bounds)


def new_passages_from_proto(messages: Sequence[retriever_pb2.NewPassage], first: int) -> list[NewPassage]:
    """The passages of a part of an upsert, counted from `first`. Raises InvalidInputError for part of a float32."""
    return [
        NewPassage(
            _passage_from_proto(message.passage),
            _vector(f"passages[{number}].vector", message.vector) if message.vector else None,
        )
        for number, message in enumerate(messages, start=first)
    ]


def _passage_from_proto(message: common_pb2.Passage) -> Passage:
    return Passage(message.id, message.title, message.text, message.metadata_json)


def retrieval_to_proto(retrieval: Retrieval) -> retriever_pb2.RetrieverServiceRetrieveResponse:
    """The response to Retrieve."""
    response = retriever_pb2.RetrieverServiceRetrieveResponse(
        knowledge_version=retrieval.knowledge_version,
        warnings=retrieval.warnings,
        query_encoder=retrieval.query_encoder,
    )
    add_timings(response.timings, retrieval.timings)
    for result in retrieval.results:
        nothing_found = nothing_found_to_proto(result.nothing_found)
        message = response.results.add(decoded_query=result.decoded_query, nothing_found=nothing_found)
        message.unknown_keys.extend(result.filter_keys.unknown)
        message.metadata_keys.extend(result.filter_keys.known if result.filter_keys.unknown else ())
        message.nested_keys.extend(result.filter_keys.nested)
        message.number_keys.extend(result.filter_keys.numbers)
        _add_hits(message, result.hits)
    return response


def _add_hits(result: retriever_pb2.QueryResult, hits: Iterable[Hit]) -> None:
    """In place: a message that is given to another one is copied."""
    for hit in hits:
        passage = result.passages.add(score=hit.score, log_prior=hit.log_prior).passage
        passage.id, passage.title, passage.text = hit.passage.id, hit.passage.title, hit.passage.text
        passage.metadata_json = hit.passage.metadata_json


def passage_to_proto(passage: Passage) -> common_pb2.Passage:
    """A passage."""
    return common_pb2.Passage(
        id=passage.id, title=passage.title, text=passage.text, metadata_json=passage.metadata_json
    )


def split_from_proto(message: retriever_pb2.SplitOptions) -> SplitOptions:
    """How the texts of an upsert are split."""
    return SplitOptions(words=message.words or None, tokens=message.tokens or None, overlap=message.overlap)


@contextmanager
def split_fields() -> Iterator[None]:
    """Gives errors about how texts are split the names of the message's fields."""
    try:
        yield
    except InvalidInputError as error:
        if error.field not in SPLIT_FIELDS:
            raise
        message = re.sub(rf"\b({'|'.join(SPLIT_FIELDS)})\b", lambda found: SPLIT_FIELDS[found[1]], error.message)
        raise InvalidInputError(SPLIT_FIELDS[error.field], message) from error


def upsert_to_proto(
    upsert: Upsert, truncated: Truncated, timings: Sequence[StageTiming]
) -> retriever_pb2.UpsertPassagesResponse:
    """The response to UpsertPassages."""
    return retriever_pb2.UpsertPassagesResponse(
        knowledge_version=upsert.version,
        inserted=upsert.inserted,
        updated=upsert.updated,
        timings=timings_to_proto(timings),
        truncated_passages=truncated.count,
        truncated_ids=truncated.names,
        removed_chunks=upsert.removed,
    )


def deletion_to_proto(deletion: Deletion) -> retriever_pb2.DeletePassagesResponse:
    """The response to DeletePassages."""
    return retriever_pb2.DeletePassagesResponse(
        knowledge_version=deletion.version, deleted=deletion.deleted, missing_ids=deletion.missing
    )


def passages_to_proto(
    ids: Sequence[str], version: int, found: Mapping[str, Passage]
) -> retriever_pb2.GetPassagesResponse:
    """The response to GetPassages: in the order of the request."""
    return retriever_pb2.GetPassagesResponse(
        passages=[passage_to_proto(found[identifier]) for identifier in ids if identifier in found],
        missing_ids=[identifier for identifier in ids if identifier not in found],
        knowledge_version=version,
    )


def versions_to_proto(versions: Iterable[Version], loaded: Container[int]) -> retriever_pb2.ListVersionsResponse:
    """The response to ListVersions."""
    return retriever_pb2.ListVersionsResponse(
        versions=[
            retriever_pb2.KnowledgeVersion(**asdict(version), loaded=version.version in loaded) for version in versions
        ]
    )


def diff_to_proto(diff: VersionDiff) -> retriever_pb2.DiffVersionsResponse:
    """The response to DiffVersions."""
    fields = asdict(diff)
    del fields["from_version"]
    return retriever_pb2.DiffVersionsResponse(**fields)


def compaction_to_proto(compaction: Compaction) -> retriever_pb2.CompactResponse:
    """The response to Compact."""
    return retriever_pb2.CompactResponse(
        knowledge_version=compaction.version,
        versions_removed=compaction.versions_removed,
        bytes_removed=compaction.bytes_removed,
    )


def stream_error_to_proto(number: int, error: RagserveError) -> retriever_pb2.RetrieveStreamResponse:
    """The answer to a request of a stream that failed."""
    message = retriever_pb2.StreamError(
        code=code_of(error).value[0],
        message=error.message,
        field=error.field,
        retry_after_seconds=error.retry_after_seconds or 0.0,
    )
    return retriever_pb2.RetrieveStreamResponse(id=number, error=message)


def info_to_proto(info: RetrieverInfo) -> retriever_pb2.RetrieverServiceGetInfoResponse:
    """The response to GetInfo."""
    return retriever_pb2.RetrieverServiceGetInfoResponse(**asdict(info))
