"""Several retrievers on one knowledge base: what one commits, all find."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import grpc
import numpy as np
import pytest

from ragserve.errors import AbortedError, NotFoundError
from retriever_svc.engine import DEFAULT_REFRESH_SECONDS
from retriever_svc.knowledge import KnowledgeBase
from tests.live.harness import Home, Replica, eventually, found, new_passage, random_vector, refused
from tests.retriever_svc.models import DIMENSION

FLAGS = {"keep_versions": 3}
WRITERS, WRITES_EACH = 4, 12


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home.build(tmp_path_factory.mktemp("replicas"))


@pytest.fixture(scope="module")
def replicas(home: Home) -> Iterator[list[Replica]]:
    started = [home.replica(**FLAGS) for _ in range(3)]
    yield started
    for replica in started:
        replica.stop()


def far_away(number: int = 0) -> np.ndarray:
    """A vector that is its own nearest neighbour by far."""
    vector = np.zeros(DIMENSION, np.float32)
    vector[number] = 100.0
    return vector


def first(replica: Replica, vector: np.ndarray, version: int = 0) -> str:
    return found(replica.search(vector, 1, version))[0][1]


def soon(replicas: Sequence[Replica], check: Callable[[Replica], bool]) -> None:
    """What was just acknowledged holds on all replicas within the refresh interval."""
    deadline = time.monotonic() + DEFAULT_REFRESH_SECONDS
    for replica in replicas:
        eventually(lambda r=replica: check(r), deadline - time.monotonic())


def test_what_one_replica_commits_all_of_them_find_within_the_refresh_interval(replicas: list[Replica]) -> None:
    committed: dict[str, int] = {}
    for writer in replicas:
        text = f"text {len(committed)}"
        committed[text] = writer.upsert([new_passage("new", text, far_away())]).knowledge_version
        soon(replicas, lambda r, text=text: first(r, far_away()) == text)
        assert {r.search(far_away(), 1).knowledge_version for r in replicas} == {committed[text]}
    replicas[1].delete(["new"])
    soon(replicas, lambda r: not first(r, far_away()).startswith("text"))
    back = replicas[2].rollback(committed["text 1"])
    soon(replicas, lambda r: r.info().knowledge_version == back and first(r, far_away()) == "text 1")
    for replica in replicas:
        eventually(lambda r=replica: r.metric("ragserve_knowledge_lag_versions") == 0)
    answers = {str(found(replica.search(np.ones(DIMENSION, np.float32), 10))) for replica in replicas}
    assert len(answers) == 1


def test_what_a_replica_commits_it_finds_at_once(replicas: list[Replica]) -> None:
    for number, writer in enumerate(replicas):
        writer.upsert([new_passage("new", f"own {number}", far_away())])
        assert first(writer, far_away()) == f"own {number}"


def test_a_killed_replica_catches_up(home: Home, replicas: list[Replica]) -> None:
    replicas[0].kill()
    replicas[1].upsert([new_passage("new", "written meanwhile", far_away())])
    replicas[1].delete(["0", "1"])
    replicas[0] = home.replica(**FLAGS)
    assert first(replicas[0], far_away()) == "written meanwhile"
    assert not replicas[0].get(["0", "1"])
    assert replicas[0].info().passages == replicas[1].info().passages


def test_the_newest_versions_can_be_pinned(replicas: list[Replica]) -> None:
    versions = [
        replicas[0].upsert([new_passage("new", f"text {number}", far_away())]).knowledge_version for number in range(4)
    ]
    for replica in replicas:
        eventually(lambda r=replica: list(r.info().loaded_versions) == versions[-3:])
        assert [first(replica, far_away(), version) for version in versions[-3:]] == ["text 1", "text 2", "text 3"]
        error = refused(lambda r=replica: first(r, far_away(), versions[0]))
        assert isinstance(error, NotFoundError)
        assert error.field == "knowledge_version"
        assert f"loaded: {', '.join(map(str, versions[-3:]))}" in error.message


class Writer(threading.Thread):
    """Writes overlapping ids through one replica, and notes what was acknowledged."""

    def __init__(self, replica: Replica, name: str) -> None:
        super().__init__()
        self._replica, self._name, self._rng = replica, name, random.Random(name)
        self.acknowledged: list[tuple[int, str, str]] = []  # version, id, text
        self.lost: list[Exception] = []

    def run(self) -> None:
        for number in range(WRITES_EACH):
            ids = self._rng.sample([f"shared {n}" for n in range(6)], 2)
            text = f"{self._name} {number}"
            try:
                response = self._replica.upsert([new_passage(each, text, random_vector(self._rng)) for each in ids])
            except grpc.RpcError as error:
                self.lost.append(error)
                continue
            self.acknowledged += [(response.knowledge_version, each, text) for each in ids]


def test_writers_of_the_same_passages_lose_races_but_no_passage(home: Home, replicas: list[Replica]) -> None:
    writers = [Writer(replicas[number % 2], f"writer {number}") for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    for error in (error for writer in writers for error in writer.lost):
        told = refused(lambda error=error: raise_(error))
        assert isinstance(told, AbortedError), told
        assert told.retry_after_seconds
        assert told.retry_after_seconds > 0
    acknowledged = [entry for writer in writers for entry in writer.acknowledged]
    print(f"{len(acknowledged) // 2} writes acknowledged, {sum(len(writer.lost) for writer in writers)} races lost")
    assert acknowledged
    newest = {identifier: text for _, identifier, text in sorted(acknowledged)}
    rows = KnowledgeBase.open(home.knowledge).dataset.to_table(columns=["id", "text"]).to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    stored = {row["id"]: row["text"] for row in rows if row["id"] in newest}
    assert stored == newest
    for replica in replicas:
        eventually(lambda r=replica: r.get(list(newest)) == newest)


def raise_(error: Exception) -> None:
    raise error
