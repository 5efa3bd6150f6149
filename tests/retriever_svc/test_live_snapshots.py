"""Every version that is loaded answers as brute force over its rows, whatever came before it. In this process."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import lance
import numpy as np
import pytest

from retriever_svc import kinds
from retriever_svc.index.code_scan import CodeScan
from retriever_svc.knowledge import DATASET_NAME
from retriever_svc.live.follower import Follower
from retriever_svc.rows import MemoryRows
from tests.retriever_svc.live_home import Home, as_passages, check, check_recall

FACTORIES = pytest.mark.parametrize(
    ("factory", "on_disk", "scale"),
    [
        ("Flat", False, 1),
        pytest.param("Flat", True, 1, marks=pytest.mark.long),
        ("HNSW8", False, 1),
        ("IVF4,Flat", True, 1),
        ("IVF4,PQ8x4", False, 5),
        ("OPQ8,IVF4,PQ8x4", False, 5),  # FAISS trains a rotation on no fewer than 256
    ],
)


@pytest.fixture(autouse=True)
def _indexes_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a filter lets as few through as here, which would otherwise be compared one by one."""
    monkeypatch.setattr(kinds, "SCANNED_ROWS", 10)


@FACTORIES
def test_every_loaded_version_answers_as_brute_force(tmp_path: Path, factory: str, on_disk: bool, scale: int) -> None:
    history(Home(tmp_path / "kb", rng(), factory, on_disk, scale), steps=10)


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("seed", range(6))
@FACTORIES
def test_long_histories(tmp_path: Path, factory: str, on_disk: bool, scale: int, seed: int) -> None:
    history(Home(tmp_path / "kb", rng(), factory, on_disk, scale), steps=150)


def test_every_loaded_version_answers_as_brute_force_with_codes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above for indexes that are otherwise too small for codes."""
    found = []
    search = CodeScan.search

    def noted(scan: CodeScan, queries: np.ndarray, n_wanted: int) -> tuple[np.ndarray, np.ndarray] | None:
        found.append(search(scan, queries, n_wanted))
        return found[-1]

    monkeypatch.setattr("retriever_svc.index.faiss_index.LEAST_VECTORS", 1)
    monkeypatch.setattr(CodeScan, "search", noted)
    history(Home(tmp_path / "kb", rng(), scale=3), steps=10)
    assert sum(each is not None for each in found) >= 10


def history(home: Home, steps: int) -> None:
    """Random commits by a writer of which the follower hears only when it looks, now and then after several."""
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
    check_recall(home)
    follower.close()


def rng() -> random.Random:
    """Of a seed that is printed, and may be given."""
    seed = int(os.environ.get("RAGSERVE_TEST_SEED", random.SystemRandom().getrandbits(32)))
    print(f"seed {seed}")
    return random.Random(seed)


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
        check(home, again)
        check_recall(home)
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
    check_recall(home)
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
    check_recall(home)
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


def test_a_rebuild_reads_only_keys_of_what_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(tmp_path / "kb", random.Random(7))
    home.upsert(60)
    follower = home.follower()
    home.upsert(60)
    home.delete()
    monkeypatch.setattr(MemoryRows, "read", lambda _dataset: pytest.fail("read again"))
    follower.refresh()
    follower.wait()
    monkeypatch.undo()
    assert (home.swaps, home.failed) == (1, 0)
    assert follower.newest.changed == 0
    check(home, follower)
    follower.close()


def test_what_is_in_memory_is_not_taken_for_another_content(tmp_path: Path) -> None:
    home = Home(tmp_path / "kb", random.Random(8))
    home.upsert(60)
    follower = home.follower()
    home.committed(home.writer.upsert(*as_passages(dict(list(home.rows.items())[:1]))).version, home.rows)
    changed = lance.dataset(str(home.path / DATASET_NAME))
    assert follower.newest.from_memory(changed) is None  # the same rows, one of them with another stamp
    home.upsert(30)
    more = lance.dataset(str(home.path / DATASET_NAME))
    assert follower.newest.from_memory(more) is None
    follower.close()
