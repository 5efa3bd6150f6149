"""Streams whose bytes are no message, or no text: what came before is answered, and the client learns what is wrong."""

from __future__ import annotations

from collections.abc import Iterable

import grpc
import pytest

from ragserve.errors import RagserveError
from ragserve.serving.status import error_from_rpc
from ragserve.v1 import common_pb2, generator_pb2, retriever_pb2
from tests.system.harness import Stack

INVALID = grpc.StatusCode.INVALID_ARGUMENT
RETRIEVER, GENERATOR = "/ragserve.v1.RetrieverService", "/ragserve.v1.GeneratorService"
NO_MESSAGE = b"\xff\xff\xff"
PLACE, NOT_UTF8 = b"PLACE", b"\xff\xfe\xfdCE"  # of one length: a text's place in a message, and what is put there


def answered(target: str, method: str, requests: Iterable[bytes]) -> tuple[list[bytes], grpc.StatusCode, RagserveError]:
    """The answers of a stream of raw bytes, and the error that it ends with."""
    answers: list[bytes] = []
    with grpc.insecure_channel(target) as channel:
        call = channel.stream_stream(method, request_serializer=bytes, response_deserializer=bytes)
        with pytest.raises(grpc.RpcError) as caught:
            answers.extend(call(iter(requests), timeout=60))
    return answers, caught.value.code(), error_from_rpc(caught.value)


def lookup(number: int, text: str = "who was born in 1960?") -> bytes:
    inner = retriever_pb2.RetrieverServiceRetrieveRequest(queries=[retriever_pb2.Query(text=text)], k=2)
    return retriever_pb2.RetrieveStreamRequest(id=number, request=inner).SerializeToString()


@pytest.mark.parametrize(
    ("bad", "field"),
    [(NO_MESSAGE, "request"), (lookup(99, "PLACE").replace(PLACE, NOT_UTF8), "request.queries.text")],
    ids=["no message", "no text"],
)
def test_lookups_before_a_bad_one_are_answered(stack: Stack, bad: bytes, field: str) -> None:
    requests = [lookup(number) for number in range(20)]
    answers, code, error = answered(stack.retriever.target, f"{RETRIEVER}/RetrieveStream", [*requests, bad])
    assert (code, error.field) == (INVALID, field), error
    read = [retriever_pb2.RetrieveStreamResponse.FromString(answer) for answer in answers]
    assert sorted(one.id for one in read) == list(range(20))
    assert all(one.HasField("response") for one in read)
    assert "Traceback" not in stack.retriever.log_text()


def upsert(text: str) -> bytes:
    passage = retriever_pb2.NewPassage(passage=common_pb2.Passage(id=text, text=text))
    return retriever_pb2.UpsertPassagesRequest(passages=[passage]).SerializeToString()


@pytest.mark.parametrize(
    ("bad", "field"),
    [(NO_MESSAGE, "request"), (upsert("PLACE").replace(PLACE, NOT_UTF8), "passages.passage.id")],
    ids=["no message", "no text"],
)
def test_an_upsert_with_a_bad_part_commits_nothing(stack: Stack, bad: bytes, field: str) -> None:
    with grpc.insecure_channel(stack.retriever.target) as channel:
        call = channel.stream_unary(f"{RETRIEVER}/UpsertPassages", request_serializer=bytes)
        with pytest.raises(grpc.RpcError) as caught:
            call(iter([upsert("good"), bad]), timeout=60)
        versions = channel.unary_unary(f"{RETRIEVER}/ListVersions", request_serializer=bytes)(b"", timeout=60)
    assert (caught.value.code(), error_from_rpc(caught.value).field) == (INVALID, field)
    assert len(retriever_pb2.ListVersionsResponse.FromString(versions).versions) == 1
    assert "Traceback" not in stack.retriever.log_text()


def opening(question: str = "who?") -> bytes:
    documents = [generator_pb2.Document(title="t", text="a river")]
    request = generator_pb2.OpenRequest(
        question=question, documents=documents, mode=common_pb2.MODE_TOKEN, candidates=4
    )
    return generator_pb2.DecodeRequest(open=request).SerializeToString()


@pytest.mark.parametrize(
    ("requests", "n_answers", "field"),
    [
        ([opening(), NO_MESSAGE], 1, "request"),
        ([opening("PLACE").replace(PLACE, NOT_UTF8)], 0, "open.question"),
    ],
    ids=["no message", "no text"],
)
def test_a_session_with_a_bad_request(stack: Stack, requests: list[bytes], n_answers: int, field: str) -> None:
    generator = stack.generators["bart"]
    answers, code, error = answered(generator.target, f"{GENERATOR}/Decode", requests)
    assert (len(answers), code, error.field) == (n_answers, INVALID, field), error
    assert "Traceback" not in generator.log_text()


@pytest.mark.parametrize("bad", [NO_MESSAGE, b"\x0a\x05\x0a\x03\xff\xfe\xfd"], ids=["no message", "no text"])
def test_a_streamed_answer_to_a_bad_request(stack: Stack, bad: bytes) -> None:
    orchestrator = stack.orchestrators["bart"]
    with grpc.insecure_channel(orchestrator.target) as channel:
        call = channel.unary_stream("/ragserve.v1.RagService/GenerateStream", request_serializer=bytes)
        with pytest.raises(grpc.RpcError) as caught:
            list(call(bad, timeout=60))
    assert caught.value.code() is INVALID
    assert "Traceback" not in orchestrator.log_text()
