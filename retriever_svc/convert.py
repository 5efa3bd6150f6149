"""Between protobuf messages and the engine's dataclasses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

import numpy as np

from ragserve.errors import InvalidInputError
from ragserve.serving.convert import timings_to_proto
from ragserve.v1 import common_pb2, retriever_pb2
from retriever_svc.engine import Retrieval, RetrieverInfo
from retriever_svc.types import Hit, Query, QueryHits

FLOAT32_BYTES = 4


def queries_from_proto(messages: Iterable[retriever_pb2.Query]) -> list[Query]:
    """The queries of a request. Raises InvalidInputError for a query without content or with half a number."""
    return [_query(f"queries[{number}]", message) for number, message in enumerate(messages)]


def _query(field: str, message: retriever_pb2.Query) -> Query:
    kind = message.WhichOneof("query")
    if kind == "text":
        return Query(text=message.text)
    if kind is None:
        raise InvalidInputError(field, f"{field} has neither text nor vector")
    if len(message.vector) % FLOAT32_BYTES:
        raise InvalidInputError(
            f"{field}.vector", f"{field}.vector has {len(message.vector)} bytes, which is no whole number of float32"
        )
    return Query(vector=np.frombuffer(message.vector, dtype="<f4").astype(np.float32))


def retrieval_to_proto(retrieval: Retrieval) -> retriever_pb2.RetrieverServiceRetrieveResponse:
    """The response to Retrieve."""
    return retriever_pb2.RetrieverServiceRetrieveResponse(
        results=[_result_to_proto(result) for result in retrieval.results],
        knowledge_version=retrieval.knowledge_version,
        timings=timings_to_proto(retrieval.timings),
    )


def _result_to_proto(result: QueryHits) -> retriever_pb2.QueryResult:
    passages = [_hit_to_proto(hit) for hit in result.hits]
    return retriever_pb2.QueryResult(passages=passages, decoded_query=result.decoded_query)


def _hit_to_proto(hit: Hit) -> common_pb2.ScoredPassage:
    passage = common_pb2.Passage(**asdict(hit.passage))
    return common_pb2.ScoredPassage(passage=passage, score=hit.score, log_prior=hit.log_prior)


def info_to_proto(info: RetrieverInfo) -> retriever_pb2.RetrieverServiceGetInfoResponse:
    """The response to GetInfo."""
    return retriever_pb2.RetrieverServiceGetInfoResponse(**asdict(info))
