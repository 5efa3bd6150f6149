"""RetrieveStream: many requests on one call, answered as they finish."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from ragserve.v1 import retriever_pb2
from tests.live.harness import Home, Replica, eventually, random_vector
from tests.retriever_svc.models import DIMENSION

TIMEOUT_SECONDS = 60.0
ONES = np.ones(DIMENSION, np.float32)


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    started = Home.build(tmp_path_factory.mktemp("stream")).replica()
    yield started
    started.stop()


def request(
    number: int, vector: np.ndarray = ONES, k: int = 3, version: int = 0
) -> retriever_pb2.RetrieveStreamRequest:
    query = retriever_pb2.Query(vector=vector.astype("<f4").tobytes())
    inner = retriever_pb2.RetrieverServiceRetrieveRequest(queries=[query], k=k, knowledge_version=version)
    return retriever_pb2.RetrieveStreamRequest(id=number, request=inner)


def test_a_thousand_requests_are_answered_as_if_each_were_alone(replica: Replica) -> None:
    """More than may be at work at once: the others wait in the connection."""
    rng = random.Random(1)
    vectors = {number * 7: random_vector(rng) for number in range(1_000)}
    requests = (request(number, vector) for number, vector in vectors.items())
    answers = {each.id: each for each in replica.stub.RetrieveStream(requests, timeout=TIMEOUT_SECONDS)}
    assert answers.keys() == vectors.keys()
    for number in list(vectors)[::50]:
        assert answers[number].WhichOneof("outcome") == "response"
        assert list(answers[number].response.results) == list(replica.search(vectors[number], 3).results)


def test_an_error_is_the_answer_of_its_own_request(replica: Replica) -> None:
    bad_filter = request(4)
    bad_filter.request.options.filter.add(key="")
    requests = [
        request(1),
        request(2, k=0),
        request(3, version=99),
        bad_filter,
        request(5, np.ones(3)),
        retriever_pb2.RetrieveStreamRequest(id=6),  # says nothing
        request(7),
    ]
    answers = {each.id: each for each in replica.stub.RetrieveStream(iter(requests), timeout=TIMEOUT_SECONDS)}
    errors = {number: (each.error.code, each.error.field) for number, each in answers.items() if each.HasField("error")}
    invalid, not_found = grpc.StatusCode.INVALID_ARGUMENT.value[0], grpc.StatusCode.NOT_FOUND.value[0]
    assert errors == {
        2: (invalid, "k"),
        3: (not_found, "knowledge_version"),
        4: (invalid, "options.filter[0].key"),
        5: (invalid, "queries[0].vector"),
        6: (invalid, "k"),
    }
    assert all(answers[number].error.message for number in errors)
    assert answers[1].response.results == answers[7].response.results


def test_answers_come_before_the_requests_end(replica: Replica) -> None:
    waiting: queue.Queue[retriever_pb2.RetrieveStreamRequest | None] = queue.Queue()
    answers = replica.stub.RetrieveStream(iter(waiting.get, None), timeout=TIMEOUT_SECONDS)
    for number in range(5):
        waiting.put(request(number))
        assert next(answers).id == number
    waiting.put(None)
    assert list(answers) == []


def in_flight(replica: Replica) -> float:
    return replica.metric("ragserve_calls_in_flight")


@pytest.mark.parametrize("read_first", [0, 3])
def test_a_client_that_leaves_leaves_nothing_behind(replica: Replica, read_first: int) -> None:
    eventually(lambda: in_flight(replica) == 0)
    more = threading.Event()

    def requests() -> Iterator[retriever_pb2.RetrieveStreamRequest]:
        yield from (request(number) for number in range(500))
        more.wait(TIMEOUT_SECONDS)

    answers = replica.stub.RetrieveStream(requests(), timeout=TIMEOUT_SECONDS)
    for _ in range(read_first):
        next(answers)
    eventually(lambda: in_flight(replica) == 1)
    answers.cancel()
    more.set()
    eventually(lambda: in_flight(replica) == 0)
    assert len(replica.search(ONES, 3).results[0].passages) == 3
    assert "Traceback" not in replica.process.log_text()


def test_a_client_that_does_not_read_holds_up_itself_alone(replica: Replica) -> None:
    sent = threading.Event()

    def requests() -> Iterator[retriever_pb2.RetrieveStreamRequest]:
        yield from (request(number, k=40) for number in range(1_000))
        sent.set()
        yield from (request(number, k=40) for number in range(1_000, 50_000))

    answers = replica.stub.RetrieveStream(requests(), timeout=TIMEOUT_SECONDS)
    assert sent.wait(TIMEOUT_SECONDS)
    for _ in range(20):
        assert len(replica.search(ONES, 3).results[0].passages) == 3
    answers.cancel()
    eventually(lambda: in_flight(replica) == 0)
