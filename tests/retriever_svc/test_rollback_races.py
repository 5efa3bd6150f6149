"""A rollback and another write at the same time: whichever commits later is refused, and may try again."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest

from ragserve.errors import AbortedError
from retriever_svc.knowledge import DATASET_NAME
from retriever_svc.live.history import list_versions
from retriever_svc.live.writer import KnowledgeWriter
from retriever_svc.types import Passage
from tests.retriever_svc.live_home import DIMENSION, ENCODER, N_IDS, Home, check

Write = Callable[[KnowledgeWriter], Any]
IDS = [f"p{number}" for number in range(N_IDS)]
VECTOR = np.ones((1, DIMENSION), np.float32)
WRITES: dict[str, Write] = {
    "insert": lambda writer: writer.upsert([Passage("another", "", "text")], VECTOR),
    "update": lambda writer: writer.upsert([Passage(IDS[0], "", "changed")], VECTOR),
    "delete": lambda writer: writer.delete([IDS[0]]),
    "rollback": lambda writer: writer.rollback(3),
    "compact": lambda writer: writer.compact(100, 0),
}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """All ids in version 2, changed by versions 3 and 4."""
    home = Home(tmp_path / "kb", random.Random(6))
    home.upsert(len(IDS))
    home.upsert(10)
    home.upsert(10)
    return home


def content(home: Home) -> dict[str, str]:
    table = lance.dataset(str(home.path / DATASET_NAME)).to_table(columns=["id", "text"])
    return dict(zip(table.column("id").to_pylist(), table.column("text").to_pylist(), strict=True))


def overtaken(writer: KnowledgeWriter, write: Write, other: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a write while another one begins and ends, after the first has read and before it commits."""
    opened = writer._open

    def then_other(version: int = 0) -> lance.LanceDataset:
        dataset = opened(version)
        monkeypatch.undo()
        other(KnowledgeWriter(writer._path, ENCODER))
        return dataset

    monkeypatch.setattr(writer, "_open", then_other)
    write(writer)


@pytest.mark.parametrize("other", WRITES)
def test_a_rollback_that_somebody_overtook_is_refused(home: Home, other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AbortedError, match="another writer committed") as caught:
        overtaken(home.writer, lambda writer: writer.rollback(2), WRITES[other], monkeypatch)
    assert caught.value.retry_after_seconds
    held, versions = content(home), list_versions(home.path)
    expected = {
        "insert": {**texts(home, 4), "another": "text"},
        "update": {**texts(home, 4), IDS[0]: "changed"},
        "delete": {key: text for key, text in texts(home, 4).items() if key != IDS[0]},
        "rollback": texts(home, 3),
        "compact": texts(home, 4),
    }
    assert held == expected[other]
    assert not list((home.path / DATASET_NAME).glob("_rollback_*"))
    assert home.writer.rollback(2) == versions[-1].version + 1
    assert content(home) == texts(home, 2)
    assert list_versions(home.path)[-1].operation == "rollback"


@pytest.mark.parametrize("write", ["insert", "update", "delete", "rollback", "compact"])
def test_what_a_rollback_overtook_is_refused(home: Home, write: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AbortedError):
        overtaken(home.writer, WRITES[write], lambda writer: writer.rollback(2), monkeypatch)
    assert list_versions(home.path)[-1].operation == "rollback"
    assert content(home) == texts(home, 2)


def test_rows_written_after_a_rollback_are_new_ones(home: Home) -> None:
    """Neither ids nor versions of rows come again, or a replica would keep what was rolled back."""
    follower = home.follower()
    for version in (2, 3, 1, 4):
        home.committed(home.writer.rollback(version), home.history[version])
        follower.refresh()
        check(home, follower)
        home.upsert(20)
        follower.refresh()
        check(home, follower)
    follower.close()
    home.follower().close()


def texts(home: Home, version: int) -> dict[str, str]:
    return {key: row[0] for key, row in home.history[version].items()}
