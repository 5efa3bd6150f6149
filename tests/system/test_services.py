"""What all three services have in common, asked of the real ones."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from ragserve.errors import InvalidInputError
from ragserve.serving.status import error_from_rpc
from tests.system.harness import Launcher, Stack
from tests.system.test_bad_start import log_of_failure

NAMES = {
    "retriever": "ragserve.v1.RetrieverService",
    "generator": "ragserve.v1.GeneratorService",
    "orchestrator": "ragserve.v1.RagService",
}
BAD_QUESTION = b"\x0a\x05\x0a\x03\xff\xfe\xfd"  # field 1 of the message in field 1


@pytest.fixture(params=NAMES)
def service(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def channel(service: str, stack: Stack) -> Iterator[grpc.Channel]:
    processes = {
        "retriever": stack.retriever,
        "generator": stack.generators["bart"],
        "orchestrator": stack.orchestrators["bart"],
    }
    with grpc.insecure_channel(processes[service].target) as channel:
        yield channel


def test_health_answers_to_its_names(service: str, channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for name in (NAMES[service], "", "liveness"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, name
    with pytest.raises(grpc.RpcError) as caught:
        stub.Check(health_pb2.HealthCheckRequest(service="ragserve.v1.NoService"), timeout=10)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_describes_the_service(service: str, channel: grpc.Channel) -> None:
    asked = reflection_pb2.ServerReflectionRequest
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    requests = [asked(list_services=""), asked(file_containing_symbol=NAMES[service])]
    listed, described = stub.ServerReflectionInfo(iter(requests), timeout=10)
    names = {found.name for found in listed.list_services_response.service}
    assert {NAMES[service], "grpc.health.v1.Health"} <= names
    assert described.file_descriptor_response.file_descriptor_proto


@pytest.mark.parametrize(
    ("service", "method", "field"),
    [("orchestrator", "GenerateStream", "request.question"), ("generator", "Decode", "open.question")],
    indirect=["service"],
)
def test_streams_name_the_text_that_is_not_utf8(service: str, method: str, field: str, channel: grpc.Channel) -> None:
    path = f"/{NAMES[service]}/{method}"
    if method == "Decode":
        responses = channel.stream_stream(path, bytes, bytes)(iter([BAD_QUESTION]), timeout=20)
    else:
        responses = channel.unary_stream(path, bytes, bytes)(BAD_QUESTION, timeout=20)
    with pytest.raises(grpc.RpcError) as caught:
        list(responses)
    error = error_from_rpc(caught.value)
    assert isinstance(error, InvalidInputError)
    assert error.field == field


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is here")
@pytest.mark.parametrize("name", ["retriever", pytest.param("generator", marks=pytest.mark.long)])
def test_cuda_that_is_not_there_is_refused(name: str, launcher: Launcher) -> None:
    (line,) = [
        line for line in log_of_failure(getattr(launcher, name)(device="cuda")).splitlines() if "cannot start" in line
    ]
    assert "field=device" in line
    assert "cuda" in line
    assert "auto" in line
