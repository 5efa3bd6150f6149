"""The service as a process of its own, over real gRPC."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from prometheus_client.parser import text_string_to_metric_families

from ragserve.errors import InvalidInputError, NotFoundError, RagserveError
from ragserve.serving.status import error_from_rpc
from ragserve.v1 import retriever_pb2, retriever_pb2_grpc
from retriever_svc.encoder import TextEncoder
from tests.retriever_svc.models import DIMENSION

FULL_NAME = "ragserve.v1.RetrieverService"
START_SECONDS = 100.0


@dataclass
class Running:
    process: subprocess.Popen[str]
    target: str
    metrics_url: str
    stub: retriever_pb2_grpc.RetrieverServiceStub
    channel: grpc.Channel


def start(*arguments: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAGSERVE_")}
    return subprocess.Popen(
        [sys.executable, "-m", "retriever_svc", "--server.port=0", "--server.metrics-port=0", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def ports(process: subprocess.Popen[str]) -> tuple[str, str]:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"grpc=(\S+) metrics=(\S+)", line):
            return found.group(1), found.group(2)
    pytest.fail("the retriever ended without listening")


@pytest.fixture(scope="module")
def running(model: Path, knowledge_base: Path) -> Iterator[Running]:
    process = start(f"--model={model}", f"--knowledge={knowledge_base}", "--threads=1", "--device=cpu")
    target, metrics = ports(process)
    with grpc.insecure_channel(target) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        deadline = time.monotonic() + START_SECONDS
        while health.Check(health_pb2.HealthCheckRequest(service=FULL_NAME)).status != 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield Running(
            process, target, f"http://{metrics}/metrics", retriever_pb2_grpc.RetrieverServiceStub(channel), channel
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert process.stderr is not None
    process.stderr.close()


def retrieve(running: Running, *queries: retriever_pb2.Query, k: int = 3, version: int = 0):
    request = retriever_pb2.RetrieverServiceRetrieveRequest(queries=queries, k=k, knowledge_version=version)
    return running.stub.Retrieve(request, timeout=60)


def error_of(running: Running, *queries: retriever_pb2.Query, **settings: int) -> RagserveError:
    with pytest.raises(grpc.RpcError) as caught:
        retrieve(running, *queries, **settings)
    return error_from_rpc(caught.value)


def test_retrieves_a_batch(running: Running, passages: list) -> None:
    texts = [passages[0].text, passages[1].text]
    response = retrieve(running, *(retriever_pb2.Query(text=text) for text in texts), k=4)
    assert response.knowledge_version == 1
    assert [timing.stage for timing in response.timings] == ["queue", "encode", "search", "fetch"]
    for result in response.results:
        assert len(result.passages) == 4
        assert result.decoded_query == result.decoded_query.lower() != ""
        scores = [passage.score for passage in result.passages]
        assert scores == sorted(scores, reverse=True)
        assert abs(sum(np.exp(passage.log_prior) for passage in result.passages) - 1) < 1e-5
        assert all(passage.passage.id and passage.passage.text for passage in result.passages)


def test_a_vector_is_a_query_too(running: Running, encoder: TextEncoder) -> None:
    vector = encoder.encode_queries(["old castle"])[0]
    by_text = retrieve(running, retriever_pb2.Query(text="old castle")).results[0]
    by_vector = retrieve(running, retriever_pb2.Query(vector=vector.astype("<f4").tobytes())).results[0]
    assert list(by_text.passages) == list(by_vector.passages)


def test_says_what_is_loaded(running: Running, passages: list) -> None:
    info = running.stub.GetInfo(retriever_pb2.RetrieverServiceGetInfoRequest())
    assert (info.knowledge_version, info.passages, info.dimension) == (1, len(passages), DIMENSION)
    assert (info.index_factory, info.device, info.score_scale) == ("Flat", "cpu", 0.5)
    assert (info.max_k, info.max_batch_queries) == (100, 64)


@pytest.mark.parametrize(
    ("query", "settings", "field"),
    [
        (retriever_pb2.Query(text=""), {}, "queries[0].text"),
        (retriever_pb2.Query(text="a" * 100_000), {}, "queries[0].text"),
        (retriever_pb2.Query(), {}, "queries[0]"),
        (retriever_pb2.Query(vector=b"\0" * 7), {}, "queries[0].vector"),
        (retriever_pb2.Query(vector=b"\0" * 8), {}, "queries[0].vector"),
        (retriever_pb2.Query(text="a"), {"k": 0}, "k"),
        (retriever_pb2.Query(text="a"), {"k": 101}, "k"),
    ],
)
def test_bad_requests_name_the_field_and_the_service_goes_on(
    running: Running, query: retriever_pb2.Query, settings: dict, field: str
) -> None:
    error = error_of(running, query, **settings)
    assert isinstance(error, InvalidInputError)
    assert error.field == field
    assert retrieve(running, retriever_pb2.Query(text="still there?")).results


def test_an_unknown_version_is_not_found(running: Running) -> None:
    assert isinstance(error_of(running, retriever_pb2.Query(text="a"), version=12), NotFoundError)


def test_metrics_count_the_calls_and_time_the_stages(running: Running) -> None:
    call = {"grpc_service": FULL_NAME, "grpc_method": "Retrieve"}
    before = settled(running, **call)
    for _ in range(3):
        retrieve(running, retriever_pb2.Query(text="moon"))
    error_of(running, retriever_pb2.Query(text=""))
    after = settled(running, **call)

    def grown(name: str, **labels: str) -> float:
        key = (name, frozenset(labels.items()))
        return after.get(key, 0.0) - before.get(key, 0.0)

    assert grown("grpc_server_handled_total", **call, grpc_code="OK") == 3
    assert grown("grpc_server_handled_total", **call, grpc_code="INVALID_ARGUMENT") == 1
    assert grown("grpc_server_handling_seconds_count", **call) == 4
    for stage in ("queue", "encode", "search", "fetch"):
        assert grown(f"ragserve_{stage}_seconds_count") == 3
    assert after[("ragserve_knowledge_passages", frozenset())] == 120


Samples = dict[tuple[str, frozenset], float]


def settled(running: Running, **labels: str) -> Samples:
    """The metrics, once they stand still: a call is counted just after its answer has left."""
    key = ("grpc_server_handling_seconds_count", frozenset(labels.items()))
    last, samples = -1.0, scrape(running)
    while samples.get(key, 0.0) != last:
        last = samples.get(key, 0.0)
        time.sleep(0.1)
        samples = scrape(running)
    return samples


def scrape(running: Running) -> Samples:
    with urllib.request.urlopen(running.metrics_url, timeout=30) as response:
        families = text_string_to_metric_families(response.read().decode())
        return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def test_reflection_lists_the_service(running: Running) -> None:
    assert FULL_NAME in ProtoReflectionDescriptorDatabase(running.channel).get_services()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda copy: (copy / "query_encoder" / "tokenizer.json").unlink(), "tokenizer.json"),
        (lambda copy: (copy / "query_encoder" / "model.onnx").write_bytes(b"short"), "model.onnx"),
        (lambda copy: (copy / "ragserve.json").unlink(), "ragserve.json"),
    ],
)
def test_a_damaged_model_ends_the_start_with_one_line(
    model: Path, knowledge_base: Path, tmp_path: Path, damage, message: str
) -> None:
    copy = tmp_path / "model"
    subprocess.run(["cp", "-r", str(model), str(copy)], check=True)
    damage(copy)
    process = start(f"--model={copy}", f"--knowledge={knowledge_base}")
    _, log = process.communicate(timeout=100)
    assert process.returncode == 1
    assert message in log
    assert "Traceback" not in log


def test_a_missing_setting_is_named() -> None:
    process = start()
    _, log = process.communicate(timeout=100)
    assert process.returncode == 2
    assert "RAGSERVE_RETRIEVER_MODEL" in log
    assert len(log.splitlines()) == 1
