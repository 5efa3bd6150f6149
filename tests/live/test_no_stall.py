"""Searches while the index is rebuilt and swapped again and again. How long they take: `python -m bench.no_stall`."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest

from tests.live.harness import Home, Replica, eventually, found, nearest, new_passage, random_vector
from tests.live.test_nothing_lost import read_content

SWAPS = "ragserve_index_swap_seconds_count"
ROUND_PASSAGES = 100
SETTLE_SECONDS = 1.0


class Load(threading.Thread):
    """Searches at a constant rate until told to stop."""

    def __init__(self, replica: Replica, seed: int, pause_seconds: float = 0.02) -> None:
        super().__init__()
        self._replica, self._rng, self._pause = replica, random.Random(seed), pause_seconds
        self.stopped = threading.Event()
        self.failures: list[str] = []
        self.answered = 0
        self.versions: list[int] = []

    def run(self) -> None:
        while not self.stopped.wait(self._pause):
            try:
                response = self._replica.search(random_vector(self._rng), 5)
            except grpc.RpcError as error:
                self.failures.append(f"{error.code().name}: {error.details()}")
                continue
            assert len(response.results[0].passages) == 5
            self.answered += 1
            self.versions.append(response.knowledge_version)


def resident_bytes(replica: Replica) -> int:
    time.sleep(SETTLE_SECONDS)
    return psutil.Process(replica.process.process.pid).memory_info().rss


def write(replica: Replica, content: dict, n_passages: int, rng: random.Random) -> None:
    """Half of them new, half of them in the place of others."""
    known = [key for key in content if key.startswith("n")]
    ids = rng.sample(known, min(len(known), n_passages // 2))
    ids += [f"n{len(content) + number}" for number in range(n_passages - len(ids))]
    passages = []
    for identifier in ids:
        content[identifier] = (f"text {rng.random()}", random_vector(rng))
        passages.append(new_passage(identifier, *content[identifier]))
    replica.upsert(passages)


def run(home: Home, n_passages: int, n_swaps: int) -> None:
    """Upsert passages and have the index rebuilt for each round of them, while searches go on."""
    rng, content = random.Random(1), dict(read_content(home))
    replica = home.replica(rebuild_min_rows=ROUND_PASSAGES // 2, rebuild_fraction=1e-6)
    loads = [Load(replica, seed) for seed in (2, 3)]
    for load in loads:
        load.start()
    per_swap = n_passages // n_swaps

    def write_rounds(rounds: int) -> None:
        for _ in range(rounds):
            before = replica.metric(SWAPS)
            write(replica, content, per_swap, rng)
            eventually(lambda before=before: replica.metric(SWAPS) > before)

    try:
        write_rounds(3)
        before, swaps = resident_bytes(replica), replica.metric(SWAPS)
        write_rounds(n_swaps)
    finally:
        for load in loads:
            load.stopped.set()
        for load in loads:
            load.join()
    assert replica.metric(SWAPS) >= swaps + n_swaps
    assert [load.failures for load in loads] == [[], []]
    assert all(load.answered for load in loads)
    assert all(load.versions == sorted(load.versions) for load in loads)  # never an older one after a newer one
    for _ in range(10):
        vector = random_vector(rng)
        assert found(replica.search(vector, 10)) == nearest(content, vector, 10)
    assert replica.info().passages == len(content)
    after = resident_bytes(replica)
    print(f"resident: {before / 2**20:.0f} MB before, {after / 2**20:.0f} MB after {n_swaps} swaps")
    grown = (n_passages // 2 + 1) * (vector.nbytes * 2 + 1_000)  # what the new passages themselves take
    assert after < before * 1.1 + grown
    replica.stop()


def test_no_search_fails_while_the_index_is_swapped_twenty_times(tmp_path: Path) -> None:
    home = Home.build(tmp_path)
    run(home, 20 * ROUND_PASSAGES, 20)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_no_search_fails_while_ten_thousand_passages_are_upserted(tmp_path: Path) -> None:
    home = Home.build(tmp_path)
    home.grow(20_000)
    run(home, 10_000, 50)


@pytest.mark.long
def test_vectors_of_a_wide_knowledge_base_are_given_back(tmp_path: Path) -> None:
    """Twenty rebuilds of 20,000 rows: the memory of the indexes before is not kept."""
    home = Home.build(tmp_path)
    home.grow(20_000)
    replica = home.replica(rebuild_min_rows=1, rebuild_fraction=1e-6)
    rng = random.Random(5)
    resident = []
    for number in range(23):
        before = replica.metric(SWAPS)
        replica.upsert([new_passage(f"n{n}", f"text {number}", random_vector(rng)) for n in range(2)])
        eventually(lambda before=before: replica.metric(SWAPS) > before)
        if number in (2, 22):
            resident.append(resident_bytes(replica))
    assert len(found(replica.search(np.ones(32, np.float32), 10))) == 10
    assert resident[1] < resident[0] * 1.1, resident
    replica.stop()
