"""Two writers of one knowledge base, the later of which has read the version before the first one's commit."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import lance
import pytest

from ragserve.errors import AbortedError
from retriever_svc.knowledge import DATASET_NAME
from retriever_svc.live.writer import RETRY_SECONDS, KnowledgeWriter
from tests.retriever_svc.live_home import ENCODER, Home, Rows, as_passages

Write = Callable[[KnowledgeWriter, Rows], object]


class Overtaken(KnowledgeWriter):
    """Commits on the version that was the newest when it was made, whatever was committed since."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, ENCODER)
        self._read = super()._open()

    def _open(self, version: int = 0) -> lance.LanceDataset:
        return super()._open(version) if version else self._read


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home(tmp_path / "kb", random.Random(1))
    home.upsert(20)
    return home


def upsert(writer: KnowledgeWriter, rows: Rows) -> object:
    return writer.upsert(*as_passages({key: (f"{text} again", *rest) for key, (text, *rest) in rows.items()}))


def delete(writer: KnowledgeWriter, rows: Rows) -> object:
    return writer.delete(list(rows))


def rollback(writer: KnowledgeWriter, _rows: Rows) -> object:
    return writer.rollback(1)


def compact(writer: KnowledgeWriter, _rows: Rows) -> object:
    return writer.compact(10, 0.0)


def texts(home: Home) -> dict[str, str]:
    rows = lance.dataset(str(home.path / DATASET_NAME)).to_table(columns=["id", "text"]).to_pylist()
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row["text"] for row in rows}


def some(home: Home, start: int) -> Rows:
    return dict(list(home.rows.items())[start : start + 3])


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (upsert, upsert),
        (upsert, delete),
        (delete, upsert),
        (delete, delete),
        (rollback, upsert),
        (rollback, delete),
        (compact, upsert),
    ],
)
def test_the_later_of_two_is_refused_and_writes_nothing(home: Home, first: Write, second: Write) -> None:
    home.upsert(3)  # files to compact
    rows, late = some(home, 0), Overtaken(home.path)
    first(home.writer, rows)
    committed, versions = texts(home), home.readable()
    with pytest.raises(AbortedError, match="another writer committed to") as caught:
        second(late, rows)
    assert caught.value.retry_after_seconds == RETRY_SECONDS > 0
    assert (texts(home), home.readable()) == (committed, versions)
    second(home.writer, rows)  # tried again


def test_a_compaction_that_is_overtaken_is_refused_and_loses_nothing(home: Home) -> None:
    home.upsert(3)
    late = Overtaken(home.path)
    upsert(home.writer, some(home, 0))
    committed = texts(home)
    with pytest.raises(AbortedError):
        compact(late, {})
    assert texts(home) == committed


def test_of_two_that_insert_the_same_passages_the_later_is_refused(home: Home) -> None:
    new: Rows = {f"new {number}": row for number, row in enumerate(some(home, 0).values())}
    late = Overtaken(home.path)
    upsert(home.writer, new)
    committed = texts(home)
    with pytest.raises(AbortedError):
        upsert(late, new)
    assert texts(home) == committed


def test_two_that_touch_other_passages_both_commit(home: Home) -> None:
    before, late = texts(home), Overtaken(home.path)
    upsert(home.writer, some(home, 0))
    upsert(late, some(home, 10))
    again = {*some(home, 0), *some(home, 10)}
    assert texts(home) == {key: f"{text} again" if key in again else text for key, text in before.items()}
