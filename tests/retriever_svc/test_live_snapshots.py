"""Every version that is loaded answers as brute force over its rows, whatever came before it. In this process."""

from __future__ import annotations

import json
import operator
import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import lance
import numpy as np
import pyarrow as pa
import pytest

from retriever_svc.filters import Condition, Filter
from retriever_svc.index import IndexSpec
from retriever_svc.kinds import nearest
from retriever_svc.knowledge import DATASET_NAME, schema
from retriever_svc.live.follower import Follower, FollowEvents, FollowOptions
from retriever_svc.live.snapshot import Snapshot, View
from retriever_svc.live.writer import KnowledgeWriter
from retriever_svc.loading import KnowledgeSource, RetrievalOptions
from retriever_svc.rows import MemoryRows
from retriever_svc.types import Passage

DIMENSION, ENCODER = 16, "an encoder"
IDS = [f"p{number}" for number in range(120)]
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
    """A knowledge base that is written here, and what each of its versions must hold."""

    path: Path
    rng: random.Random
    factory: str = "Flat"
    on_disk: bool = False
    rows: Rows = field(default_factory=dict)
    history: dict[int, Rows] = field(default_factory=dict)
    swaps: int = 0
    failed: int = 0

    def __post_init__(self) -> None:
        self.path.mkdir()
        self.options = RetrievalOptions(
            index=IndexSpec(self.factory, device="cpu", build_threads=1), max_memory_bytes=0 if self.on_disk else 2**30
        )
        self.overwrite({})
        self.writer = KnowledgeWriter(self.path, ENCODER)

    def follower(self, **options: float) -> Follower:
        source = KnowledgeSource(self.path, ENCODER, DIMENSION, self.options)
        settings = FollowOptions(**{"keep_versions": 4, "rebuild_min_rows": 40, "rebuild_fraction": 0.3, **options})
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
            for identifier in self.rng.sample(IDS, n)
        }

    def committed(self, version: int, rows: Rows) -> None:
        self.rows = dict(rows)
        self.history[version] = self.rows

    def upsert(self, n: int = 0) -> None:
        rows = self.draw(n or self.rng.choice([1, 3, 12, 30]))
        passages, vectors = as_passages(rows)
        self.committed(self.writer.upsert(passages, vectors).version, {**self.rows, **rows})

    def delete(self) -> None:
        ids = self.rng.sample(IDS, self.rng.choice([1, 5, 20]))
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
        self.overwrite(self.draw(self.rng.choice([5, 60])))

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
                compare(snapshot, rows, keys, queries, wanted, k, exact=home.factory == "Flat")


def compare(
    snapshot: Snapshot, rows: Rows, keys: dict[str, int], queries: np.ndarray, wanted: Filter, k: int, *, exact: bool
) -> None:
    allowed = {key: row for key, row in rows.items() if accepts(wanted, row[2])}
    found = nearest(View(snapshot, wanted), queries, k)
    for query, (positions, scores) in zip(queries, found, strict=True):
        truth = sorted(((-float(row[1] @ query), keys[key], key) for key, row in allowed.items()))[:k]
        passages = snapshot.passages(positions)
        assert len(passages) == len(truth)
        for passage, score in zip(passages, scores.tolist(), strict=True):
            text, vector, metadata = allowed[passage.id]
            assert (passage.text, json.loads(passage.metadata_json)) == (text, metadata)
            assert score == float(vector @ query)
        if exact:
            assert [passage.id for passage in passages] == [key for _, _, key in truth]


FACTORIES = pytest.mark.parametrize(
    ("factory", "on_disk"),
    [
        ("Flat", False),
        pytest.param("Flat", True, marks=pytest.mark.long),
        pytest.param("HNSW8", False, marks=pytest.mark.long),
        ("IVF4,Flat", True),
    ],
)


@FACTORIES
def test_every_loaded_version_answers_as_brute_force(tmp_path: Path, factory: str, on_disk: bool) -> None:
    history(tmp_path, factory, on_disk, steps=10)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(6))
@FACTORIES
def test_long_histories(tmp_path: Path, factory: str, on_disk: bool, seed: int) -> None:
    history(tmp_path, factory, on_disk, steps=150)


def history(directory: Path, factory: str, on_disk: bool, steps: int) -> None:
    """Random commits by a writer of which the follower hears only when it looks, now and then after several."""
    seed = chosen_seed()
    print(f"seed {seed}")
    home = Home(directory / "kb", random.Random(seed), factory, on_disk)
    home.upsert(60)
    follower = home.follower()
    check(home, follower)
    home.upsert(60)
    follower.refresh()
    follower.wait()
    assert home.swaps == 1
    actions: list[tuple[Callable[[], None], int]] = [
        (home.upsert, 10), (home.delete, 5), (home.rollback, 3), (home.replace, 1), (home.compact, 2)
    ]  # fmt: skip
    for _ in range(steps):
        for action in home.rng.choices([a for a, _ in actions], [w for _, w in actions], k=home.rng.choice([1, 1, 3])):
            action()
        newest = follower.refresh()
        assert newest.version == max(home.history)
        check(home, follower)
        if home.rng.random() < 0.3:
            follower.wait()
            check(home, follower)
        if home.rng.random() < 0.1:
            follower.close()
            follower = home.follower()
            check(home, follower)
    follower.wait()
    check(home, follower)
    follower.close()


def chosen_seed() -> int:
    return int(os.environ.get("RAGSERVE_TEST_SEED", random.SystemRandom().getrandbits(32)))


def test_an_emptied_knowledge_base_fills_again(tmp_path: Path) -> None:
    for factory in ("Flat", "HNSW8", "IVF4,Flat"):
        home = Home(tmp_path / factory.partition(",")[0], random.Random(1), factory)
        home.upsert(60)
        follower = home.follower()
        home.delete_all()
        assert follower.refresh().size == 0
        follower.wait()
        check(home, follower)
        follower.close()

        again = home.follower()  # starts on nothing
        assert again.newest.size == 0
        home.upsert(30)
        again.refresh()
        check(home, again)
        home.upsert(90)
        for _ in range(2):  # the first may wait for a rebuild of the version before
            again.refresh()
            again.wait()
        check(home, again)
        assert again.newest.base.index.size == len(home.rows)
        again.close()


def test_a_restart_goes_on_from_the_index_of_an_earlier_version(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = Home(tmp_path / "kb", random.Random(2), "HNSW8")
    home.upsert(100)
    home.follower().close()
    for _ in range(3):
        home.upsert(2)
    home.delete()
    with caplog.at_level("INFO"):
        follower = home.follower()
    assert "index loaded from cache" in caplog.text
    assert "building the index" not in caplog.text
    assert follower.newest.base.version == 2
    assert follower.newest.changed > 0
    check(home, follower)
    follower.close()


def test_filters_work_on_disk_when_the_files_of_the_base_are_removed(tmp_path: Path) -> None:
    home = Home(tmp_path / "kb", random.Random(3), on_disk=True)
    home.upsert(100)
    follower = home.follower(keep_versions=1)
    home.upsert(3)
    home.committed(home.writer.compact(1, 0).version, home.rows)
    follower.refresh()
    assert follower.newest.base.version < follower.newest.version
    check(home, follower)
    follower.close()


@contextmanager
def busy(follower: Follower) -> Iterator[None]:
    """Nothing is built within."""
    done = threading.Event()
    follower._background.submit(done.wait)
    yield
    done.set()


def test_a_version_that_a_compaction_removed_does_not_hold_up_a_rebuild(tmp_path: Path) -> None:
    home = Home(tmp_path / "kb", random.Random(4))
    home.upsert(60)
    follower = home.follower(keep_versions=2)
    home.upsert(41)
    with busy(follower):  # so that the build begins later
        follower.refresh()
        assert sorted(follower.snapshots) == [2, 3]
        lance.dataset(str(home.path / DATASET_NAME)).cleanup_old_versions(timedelta(0), retain_versions=1)
    follower.wait()
    assert (home.swaps, home.failed) == (1, 0)
    check(home, follower)
    follower.close()


def test_an_index_that_cannot_be_built_leaves_the_old_one(tmp_path: Path) -> None:
    """An IVF index needs as many passages as it has cells."""
    home = Home(tmp_path / "kb", random.Random(5), "IVF64,Flat")
    home.upsert(100)
    follower = home.follower()
    left = dict(list(home.rows.items())[:10])
    gone = [key for key in home.rows if key not in left]
    home.committed(home.writer.delete(gone).version, left)
    follower.refresh()
    follower.wait()
    assert (home.swaps, home.failed) == (0, 1)
    check(home, follower)
    home.upsert(100)
    follower.refresh()
    follower.wait()
    assert home.swaps == 1
    check(home, follower)
    follower.close()


def test_the_overlay_is_read_as_stored(tmp_path: Path) -> None:
    home = Home(tmp_path / "kb", random.Random(6))
    home.upsert(50)
    follower = home.follower()
    home.upsert(5)
    overlay = follower.refresh().overlay
    assert isinstance(overlay, MemoryRows)
    for passage, vector in zip(overlay.passages(np.arange(5)), overlay.vectors(np.arange(5)), strict=True):
        np.testing.assert_array_equal(vector, home.rows[passage.id][1])
    follower.close()
