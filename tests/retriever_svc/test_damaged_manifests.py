"""What a version answers whose manifest was overwritten, and what the others do then."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import lance
import numpy as np
import pytest

from ragserve.errors import DataLossError, FailedPreconditionError, NotFoundError
from retriever_svc.knowledge import DATASET_NAME, KnowledgeBase, describe
from retriever_svc.live.follower import Follower
from retriever_svc.live.history import diff_versions, list_versions, read_passages
from retriever_svc.loading import KnowledgeSource
from retriever_svc.manifests import UNREADABLE, committed, file_of, panics_as_errors
from tests.retriever_svc.live_home import DIMENSION, ENCODER
from tests.retriever_svc.test_live_snapshots import Home

DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "short": lambda _content: b"garbage",
    "empty": lambda _content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "random": lambda content: os.urandom(len(content)),
    "another end": lambda content: content[:-16] + os.urandom(16),
    "a length too long": lambda content: content[:-16] + b"\x01" + content[-15:],
}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """Five versions, and the index of the second on disk."""
    home = Home(tmp_path / "kb", random.Random(4), "HNSW8")
    home.upsert(60)
    home.follower().close()
    for _ in range(3):
        home.upsert(5)
    return home


def damage(home: Home, version: int, how: str) -> None:
    manifest = file_of(home.path / DATASET_NAME, version)
    manifest.write_bytes(DAMAGES[how](manifest.read_bytes()))


def content(follower: Follower) -> dict[str, str]:
    """Text by id of the newest version loaded."""
    newest = follower.newest
    rows = np.arange(newest.base.index.size) if newest.alive is None else np.flatnonzero(newest.alive)
    overlay = np.arange(newest.overlay.size) + newest.base.index.size
    return {passage.id: passage.text for passage in newest.passages(np.concatenate([rows, overlay]))}


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("version", [2, 4])
def test_an_older_version_that_is_damaged_is_named_and_costs_no_other(home: Home, version: int, how: str) -> None:
    damage(home, version, how)
    left = [each for each in range(1, 6) if each != version]
    listed = list_versions(home.path)
    assert [(each.version, each.passages) for each in listed] == [(each, len(home.history[each])) for each in left]
    assert all(one.created_unix_seconds <= other.created_unix_seconds for one, other in pairwise(listed))
    assert describe(home.path).versions == tuple(left)
    for call in (
        lambda: read_passages(home.path, ["p1"], version),
        lambda: home.writer.rollback(version),
        lambda: diff_versions(home.path, version),
    ):
        with pytest.raises(DataLossError, match=f"version {version} is damaged"):
            call()
    with pytest.raises(NotFoundError, match="no version 9; it has 1, 2, 3, 4, 5"):
        KnowledgeBase.open(home.path, 9)
    follower = home.follower()
    assert content(follower) == {key: row[0] for key, row in home.rows.items()}
    home.upsert(3)
    follower.refresh()
    assert content(follower) == {key: row[0] for key, row in home.rows.items()}
    follower.close()


@pytest.mark.parametrize("how", DAMAGES)
def test_the_newest_version_that_is_damaged_is_said_to_be(home: Home, how: str) -> None:
    follower = home.follower()
    home.upsert(3)
    damage(home, 6, how)
    for call in (lambda: list_versions(home.path), follower.refresh, home.follower, lambda: home.writer.delete(["p1"])):
        with pytest.raises(DataLossError, match="the newest version is damaged"):
            call()
    assert follower.newest.version == 5
    follower.close()


def test_a_flipped_bit_of_a_manifest_is_never_taken_for_another_content(home: Home) -> None:
    """Lance reads most of them all the same; what it makes of some is no knowledge base."""
    source = KnowledgeSource(home.path, ENCODER, DIMENSION, home.options)
    for version in (2, 4, 5):
        manifest = file_of(home.path / DATASET_NAME, version)
        right = manifest.read_bytes()
        for place in range(0, len(right), 23):
            manifest.write_bytes(right[:place] + bytes([right[place] ^ 1]) + right[place + 1 :])
            with pytest.raises((DataLossError, FailedPreconditionError)):
                source.open(version)
        manifest.write_bytes(right)
        assert source.open(version).passages == len(home.history[version])


def test_a_damaged_manifest_is_not_built_upon(home: Home) -> None:
    """Where Lance reads it all the same."""
    writes = {
        "upsert": lambda: home.upsert(1),
        "delete": lambda: home.writer.delete(list(home.rows)[:1]),
        "rollback": lambda: home.writer.rollback(1),
    }
    newest = max(home.history)
    manifest = file_of(home.path / DATASET_NAME, newest)
    right, accepted = manifest.read_bytes(), 0
    for place in range(0, len(right), 11):
        manifest.write_bytes(right[:place] + bytes([right[place] ^ 1]) + right[place + 1 :])
        with suppress(*UNREADABLE), panics_as_errors():
            lance.dataset(str(home.path / DATASET_NAME))
            accepted += 1
        for write in writes.values():
            with pytest.raises((DataLossError, FailedPreconditionError)):
                write()
    assert accepted
    manifest.write_bytes(right)
    home.upsert(1)
    assert max(home.history) == newest + 1


def test_versions_are_numbered_as_lance_does(home: Home) -> None:
    assert committed(home.path / DATASET_NAME) == sorted(home.readable()) == [1, 2, 3, 4, 5]
