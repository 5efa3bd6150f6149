"""Each wrong request gives one clear error that names its field, and the services go on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from ragserve.errors import RagserveError
from ragserve.serving.status import error_from_rpc
from ragserve.v1 import orchestrator_pb2, retriever_pb2, retriever_pb2_grpc
from tests.system.harness import N_PASSAGES, TOKEN, Stack, options_of, stub_of
from tests.system.oracle import Search

Options = orchestrator_pb2.GenerationOptions
INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND
NOT_UTF8 = b"\xff\xfe\xfd"
QUESTION = "who built the old tower?"

BAD = {
    "empty question": ({"question": ""}, INVALID, "question"),
    "blank question": ({"question": " \n"}, INVALID, "question"),
    "long question": ({"question": "x" * 100_000}, INVALID, "question"),
    "no documents": ({"n_docs": 0}, INVALID, "n_docs"),
    "more documents than passages": ({"n_docs": N_PASSAGES + 1}, INVALID, "n_docs"),
    "no beams": ({"options": Options(num_beams=0)}, INVALID, "options.num_beams"),
    "too many beams": ({"options": Options(num_beams=1000)}, INVALID, "options.num_beams"),
    "endless search": (
        {"options": Options(num_beams=2, length_penalty=-1.0, early_stopping=orchestrator_pb2.EARLY_STOPPING_NEVER)},
        INVALID,
        "options.length_penalty",
    ),
    "unknown version": ({"knowledge_version": 99}, NOT_FOUND, "knowledge_version"),
    "no temperature": (
        {"options": Options(sampling=orchestrator_pb2.Sampling(temperature=0.0))},
        INVALID,
        "options.sampling.temperature",
    ),
    "not a number": ({"options": Options(length_penalty=float("nan"))}, INVALID, "options.length_penalty"),
    "longer than the model": ({"options": Options(max_length=100_000)}, INVALID, "options.max_length"),
}


def good_request(**fields: Any) -> orchestrator_pb2.GenerateRequest:
    return orchestrator_pb2.GenerateRequest(**{"question": QUESTION, "n_docs": 2, **fields})


@pytest.fixture(autouse=True)
def _still_answers(stack: Stack) -> Iterator[None]:
    """After each bad request, a good one is answered."""
    yield
    assert stack.generate("bart", good_request(options=options_of(Search(max_length=5), TOKEN))).hypotheses


def error_of(call: Any) -> tuple[grpc.StatusCode, RagserveError]:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), error_from_rpc(caught.value)


@pytest.mark.parametrize("name", BAD)
def test_generate_refuses(name: str, stack: Stack) -> None:
    fields, code, field = BAD[name]
    found, error = error_of(lambda: stack.generate("bart", good_request(**fields)))
    assert (found, error.field) == (code, field)
    assert error.message
    assert "\n" not in error.message


@pytest.mark.parametrize(("fields", "code", "field"), [BAD[name] for name in BAD if "options" not in BAD[name][0]])
def test_score_and_retrieve_refuse(fields: dict[str, Any], code: grpc.StatusCode, field: str, stack: Stack) -> None:
    common = {"question": QUESTION, "n_docs": 2, **fields}
    score = orchestrator_pb2.RagServiceScoreRequest(answer="a river", **common)
    retrieve = orchestrator_pb2.RagServiceRetrieveRequest(**common)
    for call, request in ((stack.stubs["bart"].Score, score), (stack.stubs["bart"].Retrieve, retrieve)):
        found, error = error_of(lambda call=call, request=request: call(request, timeout=20))
        assert (found, error.field) == (code, field)


def test_a_stream_refuses_too(stack: Stack) -> None:
    request = orchestrator_pb2.GenerateStreamRequest(request=good_request(question=""))
    found, error = error_of(lambda: list(stack.stubs["bart"].GenerateStream(request, timeout=20)))
    assert (found, error.field) == (INVALID, "question")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/ragserve.v1.RagService/Generate", b"\x0a\x03" + NOT_UTF8),
        ("/ragserve.v1.RagService/Score", b"\x0a\x03" + NOT_UTF8),
        ("/ragserve.v1.RagService/Retrieve", b"\x0a\x03" + NOT_UTF8),
    ],
)
def test_bytes_that_are_not_utf8(path: str, message: bytes, stack: Stack) -> None:
    with grpc.insecure_channel(stack.orchestrators["bart"].target) as channel:
        call = channel.unary_unary(path, request_serializer=bytes, response_deserializer=bytes)
        found, error = error_of(lambda: call(message, timeout=20))
    assert (found, error.field) == (INVALID, "question")


def test_bytes_that_are_not_utf8_for_the_retriever(stack: Stack) -> None:
    with grpc.insecure_channel(stack.retriever.target) as channel:
        call = channel.unary_unary(
            "/ragserve.v1.RetrieverService/Retrieve", request_serializer=bytes, response_deserializer=bytes
        )
        found, error = error_of(lambda: call(b"\x0a\x05\x0a\x03" + NOT_UTF8 + b"\x10\x01", timeout=20))
    assert found is INVALID
    assert "text" in error.field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"queries": [retriever_pb2.Query(text="who?")], "k": 0}, "k"),
        ({"queries": [retriever_pb2.Query(text="who?")], "k": N_PASSAGES + 1}, "k"),
        ({"queries": [], "k": 1}, "queries"),
        ({"queries": [retriever_pb2.Query(text="")], "k": 1}, "queries[0].text"),
        ({"queries": [retriever_pb2.Query(vector=b"\0" * 12)], "k": 1}, "queries[0].vector"),
        ({"queries": [retriever_pb2.Query()], "k": 1}, "queries[0]"),
    ],
)
def test_the_retriever_refuses(fields: dict[str, Any], field: str, stack: Stack) -> None:
    with grpc.insecure_channel(stack.retriever.target) as channel:
        stub = retriever_pb2_grpc.RetrieverServiceStub(channel)
        request = retriever_pb2.RetrieverServiceRetrieveRequest(**fields)
        found, error = error_of(lambda: stub.Retrieve(request, timeout=20))
    assert (found, error.field) == (INVALID, field)


def test_a_service_that_is_not_there() -> None:
    found, error = error_of(lambda: stub_of("127.0.0.1:1").Generate(good_request(), timeout=5))
    assert found is grpc.StatusCode.UNAVAILABLE
    assert error.message
