"""Latency metrics of all three services after real requests: the stages add up to the whole."""

from __future__ import annotations

import time

import pytest

from bench.processes import ServiceProcess
from ragserve.v1 import orchestrator_pb2
from tests.system.cases import FAMILIES
from tests.system.harness import SEQUENCE, TOKEN, Stack, options_of, scrape
from tests.system.oracle import Search

STAGES = {
    "retriever": ("queue", "encode", "search", "fetch"),
    "generator": ("queue", "prefill", "decode_step", "select", "score", "render"),
    "orchestrator": ("wire", "marginalize", "other"),
}
REQUESTS = 8
TOLERANCE = 0.1  # of the whole request


def requests() -> list[orchestrator_pb2.GenerateRequest]:
    search = Search(num_beams=3, max_length=40, min_length=40)
    return [
        orchestrator_pb2.GenerateRequest(
            question=f"who was king number {index} of the river city?",
            n_docs=5,
            options=options_of(search, SEQUENCE if index % 2 else TOKEN),
        )
        for index in range(REQUESTS)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stages_add_up_to_the_whole(family: str, stack: Stack) -> None:
    services = {
        "retriever": stack.retriever,
        "generator": stack.generators[family],
        "orchestrator": stack.orchestrators[family],
    }
    before = snapshot(services)
    begin = time.monotonic()
    responses = [stack.generate(family, request) for request in requests()]
    waited = time.monotonic() - begin
    after = snapshot(services)

    def grown(name: str, sample: str) -> float:
        return after[name][sample] - before[name].get(sample, 0.0)

    parts = {
        f"{name}.{stage}": grown(name, f"ragserve_{stage}_seconds_sum") for name in STAGES for stage in STAGES[name]
    }
    whole = grown("orchestrator", "ragserve_request_seconds_sum")
    assert grown("orchestrator", "ragserve_request_seconds_count") == REQUESTS
    assert grown("orchestrator", "ragserve_time_to_first_token_seconds_count") == REQUESTS
    assert sum(parts.values()) == pytest.approx(whole, rel=TOLERANCE), parts
    assert whole == pytest.approx(waited, rel=TOLERANCE)
    reported = [timing for response in responses for timing in response.timings]
    assert sum(t.seconds for t in reported if t.stage == "request") == pytest.approx(whole, rel=0.01)
    assert {t.stage for t in reported} >= {"queue", "encode", "search", "prefill", "decode_step", "marginalize"}


def snapshot(services: dict[str, ServiceProcess]) -> dict[str, dict[str, float]]:
    return {name: scrape(service) for name, service in services.items()}


def test_calls_are_counted_by_method_and_code(stack: Stack) -> None:
    expected = {
        "RagService": (stack.orchestrators["bart"], "Generate"),
        "RetrieverService": (stack.retriever, "Retrieve"),
        "GeneratorService": (stack.generators["bart"], "Decode"),
    }
    names = {
        service: f"grpc_server_handled_total{{grpc_code=OK,grpc_method={method},grpc_service=ragserve.v1.{service}}}"
        for service, (_, method) in expected.items()
    }
    before = {service: scrape(process).get(names[service], 0.0) for service, (process, _) in expected.items()}
    stack.generate("bart", requests()[0])
    for service, (process, _) in expected.items():
        assert scrape(process)[names[service]] == before[service] + 1
