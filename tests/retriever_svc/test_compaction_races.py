"""A compaction that keeps nothing but the newest version, while others write and read."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import pytest

from ragserve.errors import AbortedError, DataLossError, NotFoundError
from retriever_svc import knowledge
from retriever_svc.convert import compaction_to_proto
from retriever_svc.knowledge import DATASET_NAME, newest_version
from retriever_svc.live import history
from retriever_svc.live.history import diff_versions, read_passages, read_passages_of
from retriever_svc.live.restoring import LEFT_SECONDS
from retriever_svc.live.writer import KnowledgeWriter
from retriever_svc.manifests import file_of
from tests.retriever_svc.live_home import ENCODER, Home, as_passages, check

Write = Callable[[KnowledgeWriter, Home], object]


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "kb", random.Random(5))
    home.upsert(20)
    return home


def move_on(home: Home) -> None:
    """Another writer's commit and its compaction: every version before them is gone."""
    home.upsert(3)
    before = max(home.history)
    done = home.writer.compact(1, 0)
    home.history.update(dict.fromkeys(range(before + 1, done.version + 1), home.rows))


def first_then(function: Callable[..., Any], then: Callable[[], None]) -> Callable[..., Any]:
    """The function, followed by something else when it is called for the first time."""
    left = [then]

    def called(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        if left:
            left.pop()()
        return result

    return called


def test_a_compaction_counts_the_versions_that_it_removed_whatever_others_commit(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.upsert(3)
    cleanup = lance.LanceDataset.cleanup_old_versions
    monkeypatch.setattr(lance.LanceDataset, "cleanup_old_versions", first_then(cleanup, lambda: home.upsert(1)))
    there = home.readable()
    done = home.writer.compact(10, 3600.0)
    assert (done.versions_removed, compaction_to_proto(done).versions_removed) == (0, 0)
    assert there < home.readable()
    there = home.readable()
    done = home.writer.compact(1, 0)
    made = set(range(max(there) + 1, done.version + 1))  # by the compaction itself: only the last of them is kept
    assert home.readable() == {done.version}
    assert done.versions_removed == len(there | made) - 1


@pytest.mark.parametrize(
    "write",
    [
        lambda writer, home: writer.upsert(*as_passages(dict(list(home.rows.items())[:2]))),
        lambda writer, home: writer.delete(list(home.rows)[:2]),
        lambda writer, home: writer.rollback(2),
    ],
    ids=["upsert", "delete", "rollback"],
)
def test_a_write_to_a_version_that_was_removed_meanwhile_is_a_lost_race(
    home: Home, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.upsert(3)
    writer = KnowledgeWriter(home.path, ENCODER)
    monkeypatch.setattr(writer, "_open", first_then(writer._open, lambda: move_on(home)))
    with pytest.raises((AbortedError, NotFoundError), match=r"try again|has no version 2"):
        write(writer, home)
    found = lance.dataset(str(home.path / DATASET_NAME)).to_table(columns=["id"]).column("id").to_pylist()
    assert sorted(found) == sorted(home.rows)


def test_a_version_that_is_removed_while_it_is_read_is_not_there(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    home.upsert(3)
    loaded, ids = max(home.history), list(home.rows)[:3]
    open_it = knowledge.KnowledgeBase.open
    monkeypatch.setattr(history.KnowledgeBase, "open", first_then(open_it, lambda: move_on(home)))
    with pytest.raises(NotFoundError, match=f"has no version {loaded}; it has "):
        read_passages(home.path, ids, loaded)
    newest, found = read_passages_of(home.path, ids, loaded)
    assert newest == newest_version(home.path)
    assert {key: passage.text for key, passage in found.items()} == {key: home.rows[key][0] for key in ids}


def test_a_version_that_is_removed_while_two_are_compared_is_not_there(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = max(home.history)
    home.upsert(len(home.ids))
    home.upsert(3)
    compare = history._differing

    def late(old: lance.LanceDataset, new: lance.LanceDataset) -> Any:
        home.writer.compact(1, 0)
        before = lance.dataset(str(home.path / DATASET_NAME), version=newest_version(home.path))
        return compare(old, before)

    monkeypatch.setattr(history, "_differing", late)
    with pytest.raises(NotFoundError, match=f"has no version {loaded}; it has "):
        diff_versions(home.path, loaded)


def test_a_version_whose_files_are_gone_is_waited_for(home: Home) -> None:
    """A compaction removes the files of a version before its manifest; one that was killed leaves that."""
    loaded, ids = max(home.history), list(home.rows)[:3]
    files = set((home.path / DATASET_NAME / "data").iterdir())
    home.committed(home.writer.upsert(*as_passages(home.rows)).version, home.rows)
    for file in files:
        file.unlink()
    for call in (lambda: read_passages_of(home.path, ids, loaded), lambda: home.writer.rollback(loaded)):
        with pytest.raises(DataLossError):
            call()
    manifest = file_of(home.path / DATASET_NAME, loaded)
    rest = threading.Timer(0.2, manifest.unlink)
    rest.start()
    newest, found = read_passages_of(home.path, ids, loaded)
    rest.join()
    assert (newest, found.keys()) == (max(home.history), set(ids))


def test_the_newest_version_is_opened_although_it_is_removed_meanwhile(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, left = knowledge.opened, [True]

    def late(directory: Path, version: int | None = None) -> lance.LanceDataset:
        """As if the manifest that was found first had been removed before it was read."""
        if version is None and left:
            left.pop()
            found = newest_version(home.path)
            move_on(home)
            return real(directory, found)
        return real(directory, version)

    monkeypatch.setattr(knowledge, "opened", late)
    assert newest_version(home.path) == max(home.history)


def test_a_replica_follows_to_the_version_after_the_one_that_was_removed(home: Home) -> None:
    follower = home.follower()
    home.upsert(3)
    follower._source.newest = first_then(follower._source.newest, lambda: move_on(home))  # type: ignore[method-assign]
    assert follower.refresh().version == max(home.history)
    check(home, follower)
    follower.close()


def test_a_compaction_removes_what_killed_rollbacks_have_left(home: Home) -> None:
    scratch = [home.path / DATASET_NAME / f"_rollback_{name}" for name in ("old", "new")]
    for folder in scratch:
        (folder / "_versions").mkdir(parents=True)
    long_ago = time.time() - LEFT_SECONDS - 1
    os.utime(scratch[0], (long_ago, long_ago))
    home.compact()
    assert [folder.exists() for folder in scratch] == [False, True]
