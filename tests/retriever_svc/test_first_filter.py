"""The first filter, which waits until the metadata of all passages is parsed, and those who do not wait with it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from ragserve.errors import DataLossError
from ragserve.serving.metrics import Metrics
from retriever_svc import filters
from retriever_svc.engine import EngineOptions, Retrieval, RetrieverEngine
from retriever_svc.filters import Condition, Filter
from retriever_svc.kinds import LookupOptions
from retriever_svc.loading import RetrievalOptions
from retriever_svc.types import Query
from tests.serving.conftest import until
from tests.tiny import tiny_kb

THREE = LookupOptions(filter=Filter((Condition("number", any_of=("3", "5", "8")),)))
QUESTION = [Query("the king of spain")]


class Parsing:
    """Holds up every parsing of metadata until it may go on, and counts them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = 0
        self.may_end = threading.Event()
        self._parse = filters._parse
        monkeypatch.setattr(filters, "_parse", self)

    def __call__(self, *args: Any) -> Any:
        self.begun += 1
        assert self.may_end.wait(60)
        return self._parse(*args)


@pytest.fixture(scope="module")
def numbered(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Passages with their number as metadata."""
    return tiny_kb(tmp_path_factory.mktemp("numbered"), model, 30)


@pytest_asyncio.fixture(params=[1, 2], ids=["one lane", "two lanes"])
async def engine(
    model: Path, numbered: Path, options: RetrievalOptions, request: pytest.FixtureRequest
) -> AsyncIterator[RetrieverEngine]:
    chosen = EngineOptions(retrieval=replace(options, threads=request.param))
    engine = RetrieverEngine(model, numbered, options=chosen, metrics=Metrics())
    await engine.start()
    yield engine
    await engine.stop()


async def test_other_searches_do_not_wait_for_the_first_filter(
    engine: RetrieverEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsing = Parsing(monkeypatch)
    filtered = [asyncio.create_task(engine.retrieve(QUESTION, 5, options=THREE)) for _ in range(3)]
    try:
        await until(lambda: parsing.begun)
        async with asyncio.timeout(30):
            plain: list[Retrieval] = [await engine.retrieve(QUESTION, 5) for _ in range(3)]
        assert not any(task.done() for task in filtered)
    finally:
        parsing.may_end.set()
    assert all(len(each.results[0].hits) == 5 for each in plain)
    found = await asyncio.gather(*filtered)
    assert all(len(each.results[0].hits) == 3 for each in found)
    assert parsing.begun == 2  # base and overlay, for all of them
    again = await engine.retrieve(QUESTION, 5, options=THREE)
    assert again.results == found[0].results
    assert parsing.begun == 2


async def test_a_filter_given_up_is_parsed_for_those_that_come_after(
    engine: RetrieverEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsing = Parsing(monkeypatch)
    given_up = asyncio.create_task(engine.retrieve(QUESTION, 5, options=THREE))
    await until(lambda: parsing.begun)
    given_up.cancel()
    after = asyncio.create_task(engine.retrieve(QUESTION, 5, options=THREE))
    parsing.may_end.set()
    assert len((await after).results[0].hits) == 3
    assert parsing.begun == 2
    assert given_up.cancelled()


async def test_metadata_that_cannot_be_read_fails_the_filter_alone(
    engine: RetrieverEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def damaged(*_args: Any) -> Any:
        raise OSError("the disk is gone")

    monkeypatch.setattr(filters, "_parse", damaged)
    with pytest.raises(DataLossError, match="the disk is gone"):
        await engine.retrieve(QUESTION, 5, options=THREE)
    assert len((await engine.retrieve(QUESTION, 5)).results[0].hits) == 5
    monkeypatch.undo()
    assert len((await engine.retrieve(QUESTION, 5, options=THREE)).results[0].hits) == 3
