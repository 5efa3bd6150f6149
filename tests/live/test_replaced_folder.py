"""A folder that is replaced under a running replica: by an older copy, or by another knowledge base."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from ragserve.errors import FailedPreconditionError
from tests.live.harness import Home, Replica, eventually, found, new_passage, refused
from tests.live.test_replicas import far_away, first


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.build(tmp_path)


def put(copy: Path, home: Home) -> None:
    """Replace the folder of the knowledge base."""
    shutil.rmtree(home.knowledge)
    shutil.copytree(copy, home.knowledge)


def refuses_until_it_is_restarted(home: Home, replica: Replica, newest: int) -> None:
    """A replica that answers from `newest` takes nothing, and one that starts serves what is there now."""
    eventually(lambda: "was replaced by other files" in replica.process.log_text())
    assert replica.metric("ragserve_knowledge_load_failures_total") > 0
    held = {each.name for each in (home.knowledge / "passages.lance" / "_versions").glob("*.manifest")}
    calls: list[Callable[[], object]] = [
        partial(replica.upsert, [new_passage("lost", "text", far_away())]),
        partial(replica.delete, ["1"]),
        partial(replica.rollback, 1),
        partial(replica.compact, 5),
        replica.refresh,
    ]
    for call in calls:
        error = refused(call)
        assert isinstance(error, FailedPreconditionError), error
        assert "restart this replica" in error.message
    assert held == {each.name for each in (home.knowledge / "passages.lance" / "_versions").glob("*.manifest")}
    assert replica.search(far_away(), 3).knowledge_version == newest
    replica.stop()
    replica = home.replica()
    written = replica.upsert([new_passage("kept", "text", far_away())]).knowledge_version
    assert first(replica, far_away(), written) == "text"
    replica.stop()


def test_an_older_copy_takes_no_writes(home: Home, tmp_path: Path) -> None:
    replica = home.replica(refresh_seconds=0.4)
    shutil.copytree(home.knowledge, tmp_path / "older")
    for number in range(3):
        replica.upsert([new_passage(f"n{number}", "text", far_away(number))])
    put(tmp_path / "older", home)
    refuses_until_it_is_restarted(home, replica, 4)


def test_an_older_copy_that_has_grown_again_is_not_mixed_with_what_is_loaded(home: Home, tmp_path: Path) -> None:
    replica = home.replica(refresh_seconds=0.4)
    shutil.copytree(home.knowledge, tmp_path / "older")
    replica.upsert([new_passage("n", "text", far_away())])
    grown = Home(home.model, tmp_path / "older", home.logs)
    for _ in range(3):
        grown.grow(5)
    put(tmp_path / "older", home)
    refuses_until_it_is_restarted(home, replica, 2)


def test_another_build_of_the_same_number_is_noticed(home: Home, tmp_path: Path) -> None:
    other = Home.build(tmp_path / "other", 30)
    replica = home.replica(refresh_seconds=0.4)
    put(other.knowledge, home)
    refuses_until_it_is_restarted(home, replica, 1)


def test_the_same_files_copied_back_are_followed_on(home: Home, tmp_path: Path) -> None:
    replica = home.replica(refresh_seconds=60)  # so that it does not look while they are copied
    replica.upsert([new_passage("n", "text", far_away())])
    shutil.copytree(home.knowledge, tmp_path / "copy")
    put(tmp_path / "copy", home)
    assert replica.refresh() == 2
    replica.upsert([new_passage("n", "again", far_away())])
    assert found(replica.search(far_away(), 1)) == [("n", "again")]
    assert replica.metric("ragserve_knowledge_load_failures_total") == 0
    replica.stop()
