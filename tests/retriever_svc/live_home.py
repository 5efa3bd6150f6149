"""A knowledge base that is written by chance, and brute force over the rows that each of its versions must hold."""

from __future__ import annotations

import json
import operator
import random
from dataclasses import dataclass, field
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa

from retriever_svc.filters import Condition, Filter
from retriever_svc.index import IndexSpec
from retriever_svc.kinds import nearest
from retriever_svc.knowledge import DATASET_NAME, schema
from retriever_svc.live.follower import Follower, FollowEvents, FollowOptions
from retriever_svc.live.snapshot import Snapshot, View
from retriever_svc.live.writer import KnowledgeWriter
from retriever_svc.loading import KnowledgeSource, MilvusServer, RetrievalOptions
from retriever_svc.rows import MemoryRows
from retriever_svc.types import Passage
from tests.retriever_svc.recall import SETTINGS, Recall

DIMENSION, ENCODER = 16, "an encoder"
N_IDS = 120
COLOURS = ("red", "green", "blue")
FILTERS = (
    Filter(),
    Filter((Condition("colour", equals="red"),)),
    Filter((Condition("colour", any_of=("red", "blue")), Condition("year", at_least="1950"))),
    Filter((Condition("year", above="1990", at_most="1999.5"),)),
    Filter((Condition("nothing", equals="x"),)),
)
Rows = dict[str, tuple[str, np.ndarray, dict]]


def accepts(wanted: Filter, metadata: dict) -> bool:
    """Our own reading of these filters, on Python values."""
    return all(
        condition.key in metadata and holds(condition, metadata[condition.key]) for condition in wanted.conditions
    )


def holds(condition: Condition, value: str | int) -> bool:
    if condition.equals is not None:
        return value == condition.equals
    if condition.any_of is not None:
        return value in condition.any_of
    tests = {"at_least": operator.ge, "above": operator.gt, "at_most": operator.le, "below": operator.lt}
    bounds = {name: getattr(condition, name) for name in tests}
    return all(tests[name](value, float(bound)) for name, bound in bounds.items() if bound is not None)


@dataclass
class Home:
    """A knowledge base that is written here, what each of its versions must hold, and what its index finds of it."""

    path: Path
    rng: random.Random
    factory: str = "Flat"
    on_disk: bool = False
    scale: int = 1  # times as many passages, for an index that needs them to be trained
    milvus: str = ""  # address of the server that holds the index; none: FAISS in this process
    rows: Rows = field(default_factory=dict)
    history: dict[int, Rows] = field(default_factory=dict)
    swaps: int = 0
    failed: int = 0
    plain: Recall = field(default_factory=Recall)
    filtered: Recall = field(default_factory=Recall)

    def __post_init__(self) -> None:
        self.path.mkdir()
        self.ids = [f"p{number}" for number in range(N_IDS * self.scale)]
        self.options = RetrievalOptions(
            index=IndexSpec(self.factory, device="cpu", build_threads=1, **SETTINGS.get(self.factory, {})),
            max_memory_bytes=0 if self.on_disk else 2**30,
            milvus=MilvusServer(self.milvus) if self.milvus else None,
        )
        self.overwrite({})
        self.writer = KnowledgeWriter(self.path, ENCODER)

    def follower(self, **options: float) -> Follower:
        source = KnowledgeSource(self.path, ENCODER, DIMENSION, self.options)
        defaults = {"keep_versions": 4, "rebuild_min_rows": 40 * self.scale, "rebuild_fraction": 0.3}
        settings = FollowOptions(**{**defaults, **options})
        follower = Follower(source, settings, FollowEvents(self._swapped, self._failed))
        follower.load()
        return follower

    def _swapped(self, _seconds: float) -> None:
        self.swaps += 1

    def _failed(self) -> None:
        self.failed += 1

    def draw(self, n: int) -> Rows:
        """Some rows. Whole small numbers as vectors make ties."""
        return {
            identifier: (
                f"text {self.rng.random()}",
                np.array([self.rng.randint(-2, 2) for _ in range(DIMENSION)], np.float32),
                {"colour": self.rng.choice(COLOURS), "year": self.rng.randint(1900, 2000)},
            )
            for identifier in self.rng.sample(self.ids, n)
        }

    def committed(self, version: int, rows: Rows) -> None:
        self.rows = dict(rows)
        self.history[version] = self.rows

    def upsert(self, n: int = 0) -> None:
        rows = self.draw(self.scale * (n or self.rng.choice([1, 3, 12, 30])))
        passages, vectors = as_passages(rows)
        self.committed(self.writer.upsert(passages, vectors).version, {**self.rows, **rows})

    def delete(self) -> None:
        ids = self.rng.sample(self.ids, self.scale * self.rng.choice([1, 5, 20]))
        left = {key: row for key, row in self.rows.items() if key not in ids}
        self.committed(self.writer.delete(ids).version, left)

    def delete_all(self) -> None:
        self.committed(self.writer.delete(list(self.rows)).version, {})

    def readable(self) -> set[int]:
        return {int(entry["version"]) for entry in lance.dataset(str(self.path / DATASET_NAME)).versions()}

    def rollback(self) -> None:
        version = self.rng.choice(sorted(self.readable()))
        rows = self.history[version]
        self.committed(self.writer.rollback(version), rows)

    def compact(self) -> None:
        before = max(self.history)
        after = self.writer.compact(self.rng.choice([1, 3]), 0).version
        self.history.update(dict.fromkeys(range(before + 1, after + 1), self.rows))  # it commits more than once

    def replace(self) -> None:
        self.overwrite(self.draw(self.scale * self.rng.choice([5, 60])))

    def overwrite(self, rows: Rows) -> None:
        """As `kb build --replace` does."""
        passages, vectors = as_passages(rows)
        table_schema = schema(DIMENSION, "float32", ENCODER)
        columns = {
            "id": [passage.id for passage in passages],
            "title": [passage.title for passage in passages],
            "text": [passage.text for passage in passages],
            "embedding": list(vectors),
            "metadata": [passage.metadata_json for passage in passages],
        }
        table = pa.table(columns, schema=table_schema)
        dataset = lance.write_dataset(
            table, str(self.path / DATASET_NAME), schema=table_schema, mode="overwrite", enable_stable_row_ids=True
        )
        self.committed(int(dataset.version), rows)


def as_passages(rows: Rows) -> tuple[list[Passage], np.ndarray]:
    passages = [
        Passage(key, f"title of {key}", text, json.dumps(metadata)) for key, (text, _, metadata) in rows.items()
    ]
    return passages, np.array([vector for _, vector, _ in rows.values()], np.float32).reshape(-1, DIMENSION)


def row_ids(home: Home, snapshot: Snapshot) -> dict[str, int]:
    """Lance's row ids by passage id, as far as the snapshot still says: what settles ties."""
    everything = np.concatenate(
        [
            np.arange(snapshot.base.index.size) if snapshot.alive is None else np.flatnonzero(snapshot.alive),
            snapshot.base.index.size + np.arange(snapshot.overlay.size),
        ]
    )
    names = [passage.id for passage in snapshot.passages(everything)]
    return dict(zip(names, snapshot.row_ids(everything).tolist(), strict=True))


def check(home: Home, follower: Follower) -> None:
    """Each loaded version, each filter, against NumPy over the rows that it must hold."""
    readable = home.readable()
    for version, snapshot in follower.snapshots.items():
        if home.on_disk and version not in readable:
            continue
        rows = home.history[version]
        assert (snapshot.version, snapshot.size) == (version, len(rows))
        keys = row_ids(home, snapshot)
        assert keys.keys() == rows.keys()
        queries = np.array([[home.rng.randint(-2, 2) for _ in range(DIMENSION)] for _ in range(3)], np.float32)
        for wanted in FILTERS:
            for k in (1, 7):
                compare(home, snapshot, keys, queries, wanted, k)
        if version in readable:
            check_memory(home, snapshot)


def check_memory(home: Home, snapshot: Snapshot) -> None:
    """What a new base is made of, without reading it again, is what is stored, row for row."""
    dataset = lance.dataset(str(home.path / DATASET_NAME), version=snapshot.version)
    rows = snapshot.from_memory(dataset)
    if home.on_disk or not snapshot.base.rows.size:
        assert rows is None
        return
    stored = MemoryRows.read(dataset)
    assert rows is not None
    everything = np.arange(stored.size)
    assert rows.size == stored.size
    assert rows.passages(everything) == stored.passages(everything)
    np.testing.assert_array_equal(rows.vectors(everything), stored.vectors(everything))
    np.testing.assert_array_equal(rows.keys.row_ids, stored.keys.row_ids)
    np.testing.assert_array_equal(rows.keys.stamps, stored.keys.stamps)


def compare(home: Home, snapshot: Snapshot, keys: dict[str, int], queries: np.ndarray, wanted: Filter, k: int) -> None:
    """The k best allowed passages of the version in order; what an approximate index misses of them is counted."""
    allowed = {key: row for key, row in home.history[snapshot.version].items() if accepts(wanted, row[2])}
    found = nearest(View(snapshot, wanted), queries, k)
    for query, (positions, scores) in zip(queries, found, strict=True):
        truth = sorted((-float(row[1] @ query), keys[key], key) for key, row in allowed.items())[:k]
        ranked = []
        for passage, score in zip(snapshot.passages(positions), scores.tolist(), strict=True):
            text, vector, metadata = allowed[passage.id]
            assert (passage.text, json.loads(passage.metadata_json)) == (text, metadata)
            assert score == float(vector @ query)
            ranked.append((-score, keys[passage.id], passage.id))
        assert ranked == sorted(set(ranked))
        assert len(ranked) == len(truth)
        if snapshot.base.index.exact:
            assert ranked == truth
        else:  # what is not in the base is compared one by one
            places = snapshot.locate(np.array([row_id for _, row_id, _ in truth], np.int64))
            indexed = {entry for entry, place in zip(truth, places, strict=True) if place < snapshot.base.index.size}
            (home.filtered if wanted.conditions else home.plain).add(len(indexed.intersection(ranked)), len(indexed))


def check_recall(home: Home) -> None:
    """Over all queries since the home was made; an exact index leaves none to count."""
    if home.factory != "Flat":
        home.plain.check(home.factory)
        home.filtered.check(home.factory)
