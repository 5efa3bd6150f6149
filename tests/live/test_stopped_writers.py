"""Writers that stop waiting: killed, or past their deadline. Until its commit begins, a write is given up."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

import ragserve
from bench.processes import ROOT, clean_environment
from ragserve.v1 import retriever_pb2
from tests.live.harness import Home, Replica, eventually, new_passage
from tests.retriever_svc.models import DIMENSION
from tests.tiny import TinyPassage, write_jsonl

SLOW = 20_000  # passages whose embedding takes many seconds
TEXT = "the great river of the north and the old castle of the king " * 8
ONES = np.ones(DIMENSION, np.float32)
AGEING = {"server.max_connection_age_seconds": 0.5, "server.grace_seconds": 0.1}

CLIENT = f"""
import sys
from ragserve.knowledge_client import KnowledgeClient
with KnowledgeClient(sys.argv[1]) as client:
    client.upsert({{"id": str(n), "text": {TEXT!r}}} for n in range({SLOW}))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home.build(tmp_path_factory.mktemp("stopped"))


@pytest.fixture(scope="module")
def replica(home: Home) -> Iterator[Replica]:
    started = home.replica()
    yield started
    started.stop()


def parts(count: int, text: str = TEXT) -> Iterator[retriever_pb2.UpsertPassagesRequest]:
    for start in range(0, count, 200):
        passages = [new_passage(f"slow {number}", text) for number in range(start, start + 200)]
        yield retriever_pb2.UpsertPassagesRequest(passages=passages)


def embedding(replica: Replica) -> bool:
    """Whether a write is at work."""
    return replica.metric("ragserve_calls_in_flight") == 1


def given_up(replica: Replica) -> int:
    return replica.process.log_text().count("a write is given up")


def committed(replica: Replica) -> int:
    return max(version.version for version in replica.versions())


def test_a_killed_writer_commits_nothing(replica: Replica, tmp_path: Path) -> None:
    before = committed(replica)
    log = (tmp_path / "log").open("wb")
    command = [sys.executable, "-c", CLIENT, replica.process.target]
    client = subprocess.Popen(command, cwd=ROOT, env=clean_environment(1), stdout=log, stderr=log)
    eventually(lambda: embedding(replica))
    time.sleep(3)
    client.kill()
    client.wait()
    log.close()
    eventually(lambda: given_up(replica) == 1, seconds=20)
    eventually(lambda: not embedding(replica))
    assert committed(replica) == before


def test_a_deadline_before_the_commit(replica: Replica) -> None:
    before, known = committed(replica), given_up(replica)
    with pytest.raises(grpc.RpcError) as caught:
        replica.stub.UpsertPassages(parts(SLOW), timeout=2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    eventually(lambda: given_up(replica) == known + 1, seconds=20)
    assert committed(replica) == before


def test_writes_that_queue_are_given_up_with_their_callers(replica: Replica) -> None:
    passage = new_passage("kept", "text", ONES)
    assert replica.upsert([passage]).inserted == 1
    before = committed(replica)
    slow = replica.stub.UpsertPassages.future(parts(SLOW), timeout=120)
    eventually(lambda: embedding(replica))
    time.sleep(1)
    short = {"timeout": 1.0}
    queued = [
        replica.stub.DeletePassages.future(retriever_pb2.DeletePassagesRequest(ids=["kept"]), **short),
        replica.stub.Rollback.future(retriever_pb2.RollbackRequest(knowledge_version=1), **short),
        replica.stub.Compact.future(retriever_pb2.CompactRequest(keep_versions=1, keep_seconds=0), **short),
        replica.stub.UpsertPassages.future(iter([retriever_pb2.UpsertPassagesRequest(passages=[passage])]), **short),
    ]
    assert [call.code() for call in queued] == [grpc.StatusCode.DEADLINE_EXCEEDED] * len(queued)
    assert not slow.done()
    slow.cancel()
    eventually(lambda: replica.metric("ragserve_calls_in_flight") == 0)
    assert replica.upsert([new_passage("next", "text", ONES)]).knowledge_version == before + 1
    assert replica.get(["kept"]) == {"kept": "text"}


def test_an_upsert_outlives_its_connection(home: Home) -> None:
    """One that is sent for longer than the connection's age and the drain's grace together."""
    replica = home.replica(**AGEING)

    def slowly() -> Iterator[retriever_pb2.UpsertPassagesRequest]:
        for part in parts(1_000):
            time.sleep(0.6)
            yield part

    before = committed(replica)
    done = replica.stub.UpsertPassages(slowly(), timeout=120)
    assert (done.inserted, done.knowledge_version) == (1_000, before + 1)
    slow = [{"id": f"late {number}", "text": TEXT} for number in range(SLOW)]
    with (  # an old connection ends together with its last call
        ragserve.KnowledgeClient(replica.process.target) as client,
        pytest.raises(ragserve.DeadlineExceededError, match="timeout_seconds was 2"),
    ):
        client.upsert(slow, timeout_seconds=2)
    eventually(lambda: not embedding(replica))
    replica.stop()


def test_an_add_says_what_is_committed_and_what_nobody_knows(home: Home, tmp_path: Path) -> None:
    replica = home.replica()
    before, batch = committed(replica), 5_000
    source = write_jsonl(tmp_path / "many.jsonl", [TinyPassage(f"add {n}", "", TEXT) for n in range(2 * batch)])
    arguments = ["kb", "add", source, "--retriever", replica.process.target, "--batch-passages", batch]
    command = [Path(sys.executable).with_name("ragserve"), *map(str, arguments)]
    adding = subprocess.Popen(command, env=clean_environment(1), stderr=subprocess.PIPE, text=True)
    labels = 'grpc_code="OK",grpc_method="UpsertPassages",grpc_service="ragserve.v1.RetrieverService"'
    eventually(lambda: replica.metric(f"grpc_server_handled_total{{{labels}}}") == 1)
    eventually(lambda: embedding(replica))
    time.sleep(0.5)
    replica.kill()
    _, told = adding.communicate(timeout=60)
    told = " ".join(told.split())
    assert adding.returncode == 1
    assert f"passages 1 to {batch} are committed (version {before + 1}); nobody knows whether passages" in told
    assert f"{batch + 1} to {2 * batch} are committed. Adding all again is safe" in told
    assert "Nobody knows whether the passages were committed" in told
    assert "ragserve up" not in told


def test_writes_that_were_never_sent_leave_no_doubt() -> None:
    with ragserve.KnowledgeClient("127.0.0.1:1", max_attempts=2) as client:
        for write in (lambda: client.delete(["a"]), lambda: client.upsert([{"id": "a", "text": "b"}])):
            with pytest.raises(ragserve.UnavailableError) as caught:
                write()
            assert not caught.value.outcome_unknown
            assert "committed" not in caught.value.message


def test_a_rollback_that_ends_too_late_leaves_doubt(replica: Replica) -> None:
    slow = replica.stub.UpsertPassages.future(parts(SLOW), timeout=120)
    eventually(lambda: embedding(replica))
    time.sleep(2)
    with (
        ragserve.KnowledgeClient(replica.process.target) as client,
        pytest.raises(ragserve.DeadlineExceededError, match="see the versions before you do it again") as caught,
    ):
        client.rollback(1, timeout_seconds=0.5)
    assert caught.value.outcome_unknown
    slow.cancel()
    eventually(lambda: not embedding(replica))
