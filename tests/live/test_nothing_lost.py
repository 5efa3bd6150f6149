"""Random writes, searches, refreshes, compactions, SIGTERM and kill -9 against a dictionary. The seed is printed."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
import pytest

from ragserve.errors import DataLossError
from ragserve.serving.status import error_from_rpc
from ragserve.v1 import retriever_pb2
from retriever_svc.knowledge import KnowledgeBase
from retriever_svc.rows import MemoryRows
from tests.live.harness import Content, Home, Model, Replica, Vector, found, new_passage, random_vector, scores
from tests.retriever_svc.recall import Recall

POOL = [f"p{number}" for number in range(300)]
FLAGS = {"refresh_seconds": 0.3, "rebuild_min_rows": 60, "rebuild_fraction": 0.2, "keep_versions": 3}


def read_content(home: Home) -> dict:
    rows = MemoryRows.read(KnowledgeBase.open(home.knowledge).dataset)
    every = np.arange(rows.size)
    return {
        passage.id: (passage.text, vector)
        for passage, vector in zip(rows.passages(every), rows.vectors(every), strict=True)
    }


class Watcher(threading.Thread):
    """Searches all the time. What it found is compared with the versions when they are all known."""

    def __init__(self, target: Callable[[], Replica], seed: int) -> None:
        super().__init__(daemon=True)
        self._target, self._rng = target, random.Random(seed)
        self.done = False
        self.seen: list[tuple[int, np.ndarray, list[tuple[str, str]]]] = []

    def run(self) -> None:
        while not self.done:
            vector = random_vector(self._rng)
            try:
                response = self._target().search(vector, 3)
            except (grpc.RpcError, ValueError):  # killed, starting, or a closed channel
                time.sleep(0.05)
                continue
            self.seen.append((response.knowledge_version, vector, found(response)))
            time.sleep(0.02)


class Story:
    """One run: what is done to the retriever, and what must be seen."""

    def __init__(self, home: Home, seed: int, flags: dict) -> None:
        self.home, self.rng, self.flags = home, random.Random(seed), flags
        self.replica = home.replica(**flags)
        self.model = Model({}, 0)
        self.model.committed(1, read_content(home))
        self.revision = 0
        self.restarts = 0
        self.cut_off = self.rng.sample(
            [self.begin_upsert, self.begin_delete, self.begin_rollback, self.begin_compact], 4
        )
        self.factory = str(flags.get("index_factory", "Flat"))
        self.recall = Recall()

    def step(self) -> None:
        choices = (
            (self.upsert, 30), (self.delete, 10), (self.search, 38), (self.search_pinned, 8), (self.get, 6),
            (self.rollback, 3), (self.refresh, 4), (self.compact, 1),
        )  # fmt: skip
        actions, weights = zip(*choices, strict=True)
        self.rng.choices(actions, weights)[0]()

    def draw(self) -> tuple[dict, list[retriever_pb2.NewPassage]]:
        """The content after an upsert, and the upsert."""
        content, passages = dict(self.model.content), []
        for identifier in self.rng.sample(POOL, self.rng.choice([1, 1, 2, 5, 20])):
            self.revision += 1
            text, vector = f"{identifier} revision {self.revision}", random_vector(self.rng)
            content[identifier] = (text, vector)
            passages.append(new_passage(identifier, text, vector))
        return content, passages

    def upsert(self) -> None:
        content, passages = self.draw()
        response = self.replica.upsert(passages)
        assert response.inserted == len(content) - len(self.model.content)
        assert response.inserted + response.updated == len(passages)
        self.model.committed(response.knowledge_version, content)

    def delete(self) -> None:
        ids = self.rng.sample(POOL, self.rng.choice([1, 3, 8]))
        content = {key: value for key, value in self.model.content.items() if key not in ids}
        response = self.replica.delete(ids)
        assert response.deleted == len(self.model.content) - len(content)
        assert set(response.missing_ids) == {key for key in ids if key not in self.model.content}
        self.model.committed(response.knowledge_version, content)

    def older(self) -> int:
        """A version that can be read."""
        readable = {version.version for version in self.replica.versions()}
        return self.rng.choice(sorted(readable & self.model.history.keys()))

    def rollback(self) -> None:
        version = self.older()
        content = dict(self.model.history[version])
        try:
            self.model.committed(self.replica.rollback(version), content)
        except grpc.RpcError as error:
            refusal = error_from_rpc(error)
            # A compaction that was cut off has removed files of it, and not yet the version.
            gone = isinstance(refusal, DataLossError) and "cannot be read any more" in str(refusal)
            if not (gone and self.restarts):
                raise

    def compact(self) -> None:
        self.model.committed(self.replica.compact(keep_versions=8).knowledge_version, self.model.content)

    def refresh(self) -> None:
        assert self.replica.refresh() == self.model.version

    def get(self) -> None:
        ids = self.rng.sample(POOL, 5)
        held = {key: self.model.content[key][0] for key in ids if key in self.model.content}
        assert self.replica.get(ids) == held

    def search(self) -> None:
        self.check(0, self.model.version)

    def search_pinned(self) -> None:
        loaded = set(self.replica.info().loaded_versions) & self.model.history.keys()
        version = self.rng.choice(sorted(loaded))
        self.check(version, version)

    def check(self, asked: int, version: int) -> None:
        content, vector = self.model.history[version], random_vector(self.rng)
        if not content:
            return
        k = self.rng.choice([1, 5, 10, min(100, len(content))])
        response = self.replica.search(vector, min(k, len(content)), asked)
        assert response.knowledge_version == version
        self.compare(found(response), content, vector, k)

    def begin_upsert(self) -> tuple[Content, grpc.Future]:
        content, passages = self.draw()
        requests = iter([retriever_pb2.UpsertPassagesRequest(passages=passages)])
        return content, self.replica.stub.UpsertPassages.future(requests, timeout=60)

    def begin_delete(self) -> tuple[Content, grpc.Future]:
        ids = self.rng.sample(sorted(self.model.content), min(8, len(self.model.content)))
        content = {key: value for key, value in self.model.content.items() if key not in ids}
        return content, self.replica.stub.DeletePassages.future(
            retriever_pb2.DeletePassagesRequest(ids=ids), timeout=60
        )

    def begin_rollback(self) -> tuple[Content, grpc.Future]:
        version = self.older()
        request = retriever_pb2.RollbackRequest(knowledge_version=version)
        return self.model.history[version], self.replica.stub.Rollback.future(request, timeout=60)

    def begin_compact(self) -> tuple[Content, grpc.Future]:
        request = retriever_pb2.CompactRequest(keep_versions=8, keep_seconds=0)
        return self.model.content, self.replica.stub.Compact.future(request, timeout=60)

    def restart(self) -> None:
        """kill -9, mostly in the middle of a write: then either all of it is there afterwards, or nothing.

        One in four is a SIGTERM, which lets the write finish.
        """
        before, after, call, acknowledged = self.model.content, self.model.content, None, False
        if self.rng.random() < 0.85:
            after, call = self.cut_off[self.restarts % len(self.cut_off)]()
            time.sleep(self.rng.random() * 0.06)
            acknowledged = call.done() and call.exception() is None
        if self.rng.random() < 0.25:
            assert self.replica.process.stop() == 0, self.replica.process.log_text()[-4000:]
            acknowledged = call is not None and call.exception() is None
            self.replica.channel.close()
        else:
            self.replica.kill()
        self.restarts += 1
        self.replica = self.home.replica(**self.flags)
        texts = texts_of(read_content(self.home))
        assert texts in [texts_of(after)] + [texts_of(before)] * (not acknowledged)
        kept = after if texts == texts_of(after) else before
        self.model.committed(self.replica.info().knowledge_version, dict(kept))
        assert self.replica.get(POOL) == {key: text for key, text in texts.items() if key in POOL}

    def compare(self, got: list[tuple[str, str]], content: Content, query: Vector, k: int) -> None:
        """k passages of the content, best first; what an approximate index misses of the k best is counted.

        By their scores: in 20,000 steps a few neighbours score the same.
        """
        assert len(dict(got)) == len(got) == min(k, len(content))
        assert {identifier: text for identifier, text in got if content.get(identifier, (None,))[0] != text} == {}
        of = scores(content, query)
        ranked, best = [of[identifier] for identifier, _ in got], sorted(of.values(), reverse=True)[:k]
        assert ranked == sorted(ranked, reverse=True)
        if self.factory == "Flat":
            assert ranked == best
        self.recall.add(len(set(ranked).intersection(best)), len(set(best)))


def texts_of(content: Content) -> dict[str, str]:
    return {identifier: text for identifier, (text, _) in content.items()}


def run(directory: Path, steps: int, restarts: int, seed: int, **flags: object) -> None:
    print(f"seed {seed}")  # shown when it fails
    story = Story(Home.build(directory), seed, {**FLAGS, **flags})
    watcher = Watcher(lambda: story.replica, seed)
    watcher.start()
    moments = set(story.rng.sample(range(steps), restarts))
    try:
        for number in range(steps):
            story.restart() if number in moments else story.step()
    finally:
        watcher.done = True
        watcher.join()
    known = [entry for entry in watcher.seen if entry[0] in story.model.history]
    assert len(known) > steps / 100
    for version, vector, passages in known:
        content = story.model.history[version]
        story.compare(passages, content, vector, 3)
    if story.factory != "Flat":
        story.recall.check(story.factory)
    story.replica.stop()
    assert read_content(story.home).keys() == story.model.content.keys()


def chosen_seed() -> int:
    return int(os.environ.get("RAGSERVE_TEST_SEED", random.SystemRandom().getrandbits(32)))


def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    run(tmp_path, steps=400, restarts=4, seed=chosen_seed())


@pytest.mark.long
@pytest.mark.timeout(1500)
def test_nothing_acknowledged_is_lost_in_twenty_thousand_steps(tmp_path: Path) -> None:
    run(tmp_path, steps=20_000, restarts=60, seed=chosen_seed())


@pytest.mark.long
@pytest.mark.timeout(600)
def test_nothing_is_lost_with_an_approximate_index_and_passages_on_disk(tmp_path: Path) -> None:
    run(tmp_path, steps=1_500, restarts=8, seed=chosen_seed(), index_factory="HNSW16", passages_in_memory_bytes=0)
