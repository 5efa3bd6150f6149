"""Writes whose callers leave: given up until the commit begins, completed afterwards."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ragserve.errors import DeadlineExceededError
from ragserve.serving.metrics import StageClock
from retriever_svc.editing import EditOptions, Editor
from retriever_svc.knowledge import newest_version
from retriever_svc.live.follower import Follower
from retriever_svc.types import NewPassage, Passage
from tests.retriever_svc.live_home import DIMENSION, Home

ONES = np.ones(DIMENSION, np.float32)


def no_encoder() -> None:
    raise AssertionError


def no_cut(_: object) -> None:
    raise AssertionError


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "kb", random.Random(1))


@pytest.fixture
def follower(home: Home) -> Iterator[Follower]:
    follower = home.follower()
    yield follower
    follower.close()


@pytest.fixture
def editor(home: Home, follower: Follower) -> Iterator[Editor]:
    editor = Editor(home.writer, follower, no_encoder, no_cut, EditOptions(max_waiting=3), lambda _operation: None)
    yield editor
    editor.close()


class Vector(np.ndarray):
    """One that can be referred to weakly."""


def passage(identifier: str) -> NewPassage:
    return NewPassage(Passage(identifier, "", "text"), ONES.view(Vector))


async def until_committed(home: Home, version: int) -> None:
    async with asyncio.timeout(30):
        while newest_version(home.path) < version:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_a_commit_that_has_begun_is_completed(home: Home, follower: Follower, editor: Editor) -> None:
    before = newest_version(home.path)
    with follower._lock:  # so that the write ends between commit and answer
        writing = asyncio.create_task(editor.upsert([passage("a")], StageClock()))
        await until_committed(home, before + 1)
        writing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await writing
    done, _ = await editor.upsert([passage("b")], StageClock())
    assert done.version == before + 2
    assert follower.newest.version == done.version
    assert (await editor.delete(["a", "b"], StageClock())).deleted == 2


async def test_queued_writes_are_given_up_and_hold_no_memory(home: Home, follower: Follower, editor: Editor) -> None:
    before = newest_version(home.path)
    with follower._lock:
        first = asyncio.create_task(editor.upsert([passage("a")], StageClock()))
        await until_committed(home, before + 1)
        for number in range(20):  # more than may wait: those who left hold no place
            new = passage(f"left {number}")
            vector = weakref.ref(new.vector)
            left = asyncio.create_task(editor.upsert([new], StageClock()))
            del new
            await asyncio.sleep(0)
            left.cancel()
            await asyncio.wait({left})
            del left
            gc.collect()
            assert vector() is None
        late = asyncio.create_task(editor.delete(["a"], StageClock(), seconds_left=0.05))
        await asyncio.sleep(0.1)
    await first
    with pytest.raises(DeadlineExceededError, match="nothing was written"):
        await late
    assert newest_version(home.path) == before + 1
    assert (await editor.delete(["a"], StageClock(), seconds_left=60)).deleted == 1
