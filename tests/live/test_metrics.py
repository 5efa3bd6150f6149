"""What a retriever's metrics say after operations whose effect is known."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from ragserve.v1 import retriever_pb2
from retriever_svc.encoder import TextEncoder
from tests.live.harness import Home, Replica, eventually, new_passage
from tests.retriever_svc.models import DIMENSION

ONES = np.ones(DIMENSION, np.float32)
PASSAGES, FULL_BATCH, CLIENTS = 40, 64, 8
STAGES = ("embed", "commit", "apply")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home.build(tmp_path_factory.mktemp("metrics"), PASSAGES)


@pytest.fixture
def replica(home: Home) -> Iterator[Replica]:
    started = home.replica()
    yield started
    started.stop()


def texts(*questions: str) -> retriever_pb2.RetrieverServiceRetrieveRequest:
    queries = [retriever_pb2.Query(text=question) for question in questions]
    return retriever_pb2.RetrieverServiceRetrieveRequest(queries=queries, k=3)


def held(replica: Replica) -> tuple[float, ...]:
    """Version, passages, passages beside the base index, rows of it that are dead."""
    names = ("version", "passages", "delta_passages", "dead_rows")
    return tuple(replica.metric(f"ragserve_knowledge_{name}") for name in names)


def commits(replica: Replica) -> dict[str, float]:
    operations = ("upsert", "delete", "rollback", "compact")
    return {each: replica.metric(f'ragserve_commits_total{{operation="{each}"}}') for each in operations}


def runs(replica: Replica) -> list[float]:
    return [replica.metric(f"ragserve_{stage}_seconds_count") for stage in STAGES]


def test_writes(replica: Replica) -> None:
    assert held(replica) == (1, PASSAGES, 0, 0)
    assert commits(replica) == {"upsert": 0, "delete": 0, "rollback": 0, "compact": 0}
    written = replica.upsert([new_passage("0", "x", ONES), new_passage("1", "y", ONES), new_passage("new", "to embed")])
    assert held(replica) == (2, PASSAGES + 1, 3, 2)
    assert runs(replica) == [1, 1, 1]
    told = {timing.stage: timing.seconds for timing in written.timings}
    for stage in STAGES:
        assert replica.metric(f"ragserve_{stage}_seconds_sum") == pytest.approx(told[stage])
    replica.delete(["2", "new"])
    assert held(replica) == (3, PASSAGES - 1, 2, 3)
    assert replica.rollback(1) == 4
    assert held(replica) == (4, PASSAGES, 0, 0)
    version = replica.compact(keep_versions=1).knowledge_version
    assert held(replica)[:2] == (version, PASSAGES)
    assert commits(replica) == {"upsert": 1, "delete": 1, "rollback": 1, "compact": 1}
    assert runs(replica) == [1, 4, 4]


def test_batches(home: Home, replica: Replica) -> None:
    questions = ("who built the castle?", "moon", "where does the northern river end?")
    encoder = TextEncoder.load(home.model / "query_encoder", device="cpu", threads=1)
    replica.stub.Retrieve(texts(*questions), timeout=60)
    replica.search(ONES, 3)  # nothing to encode
    for name, count, total in (
        ("queries", 2, len(questions) + 1),
        ("tokens", 1, sum(map(len, encoder.tokenize_queries(questions)))),
    ):
        assert replica.metric(f"ragserve_batch_{name}_count") == count
        assert replica.metric(f"ragserve_batch_{name}_sum") == total


def test_the_queue(replica: Replica) -> None:
    """Each request is a batch, and one runs at a time: so of those under way all but one wait, or fewer."""
    request, depths = texts(*["a long question about the old king of the river city"] * FULL_BATCH), set[float]()

    def waiting() -> bool:
        calls = [replica.stub.Retrieve.future(request, timeout=60) for _ in range(CLIENTS)]
        depth = replica.metric("ragserve_queue_depth")
        for call in calls:
            call.result()
        depths.add(depth)
        return depth > 0

    assert replica.metric("ragserve_queue_depth") == 0
    eventually(waiting)
    assert max(depths) < CLIENTS
    assert replica.metric("ragserve_queue_depth") == 0
