"""The knowledge clients against real retrievers."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ragserve
from tests.live.harness import Home, Replica
from tests.retriever_svc.models import DIMENSION

N_PASSAGES = 40
FLAGS = {"refresh_seconds": 0.2, "keep_versions": 3}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    return Home.build(tmp_path_factory.mktemp("home"), N_PASSAGES)


@pytest.fixture(scope="module")
def replica(home: Home) -> Iterator[Replica]:
    running = home.replica(**FLAGS)
    yield running
    running.stop()


@pytest.fixture
def client(replica: Replica) -> Iterator[ragserve.KnowledgeClient]:
    with ragserve.KnowledgeClient(replica.process.target) as client:
        yield client


@pytest.fixture
async def async_client(replica: Replica) -> AsyncIterator[ragserve.AsyncKnowledgeClient]:
    async with ragserve.AsyncKnowledgeClient(replica.process.target) as client:
        yield client


def vector(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=DIMENSION).astype(np.float32)


def dated(prefix: str, count: int) -> list[ragserve.NewPassage]:
    """Passages of the years 1980 on, every other one in German."""
    return [
        ragserve.NewPassage(
            f"{prefix}{number}",
            f"text of {prefix}{number}",
            "a title",
            {"year": 1980 + number, "lang": ("en", "de")[number % 2], "day": date(2020, 1, 1 + number), "set": prefix},
            vector(number),
        )
        for number in range(count)
    ]


def test_what_is_written_is_there(client: ragserve.KnowledgeClient) -> None:
    before = client.info()
    told: list[tuple[int, int]] = []
    mapping = {"id": "w-new", "text": "text without a vector", "metadata": {"n": 1}}
    done = client.upsert([*dated("w", 3), mapping], progress=lambda *counts: told.append(counts))
    assert (done.inserted, done.updated, told) == (4, 0, [(4, 4)])
    assert done.knowledge_version == before.knowledge_version + 1
    assert {"embed", "commit", "apply"} <= done.timings_seconds.keys()
    replaced = client.upsert([{"id": "w0", "text": "another text", "vector": vector(0)}])
    assert (replaced.inserted, replaced.updated) == (0, 1)

    found = client.get(["w0", "nowhere", "w1"])
    assert [passage.text for passage in found.passages] == ["another text", "text of w1"]
    assert found.passages[1].metadata == {"year": 1981, "lang": "de", "day": "2020-01-02", "set": "w"}
    assert (found.missing_ids, found.knowledge_version) == (("nowhere",), replaced.knowledge_version)
    old = client.get(["w0"], knowledge_version=done.knowledge_version)
    assert old.passages[0].text == "text of w0"

    gone = client.delete(["w0", "w1", "nowhere"])
    assert (gone.deleted, gone.missing_ids) == (2, ("nowhere",))
    diff = client.diff(before.knowledge_version)
    assert (diff.added_ids, diff.changed_ids, diff.removed_ids) == (("w-new", "w2"), (), ())
    diff = client.diff(replaced.knowledge_version, gone.knowledge_version, limit=1)
    assert (diff.removed_ids, diff.removed, diff.from_version) == (("w0",), 2, replaced.knowledge_version)

    back = client.rollback(before.knowledge_version)
    assert client.get(["w2"]).missing_ids == ("w2",)
    versions = {version.version: version for version in client.versions()}
    assert versions[back].passages == versions[before.knowledge_version].passages == before.passages
    assert (versions[back].operation, versions[back].loaded) == ("rollback", True)
    assert client.refresh() == back
    compacted = client.compact(keep_versions=2, keep_seconds=0)
    assert compacted.knowledge_version >= back
    assert compacted.versions_removed > 0
    assert client.info().passages == before.passages


@pytest.mark.parametrize(
    ("wanted", "numbers"),
    [
        ({"year": ragserve.between(1982, 1984)}, {2, 3, 4}),
        ({"year": ragserve.Range(above=1982, below="1984")}, {3}),
        ({"lang": "de"}, {1, 3, 5}),
        ({"lang": ["de", "fr"], "year": ragserve.Range(at_least=1983)}, {3, 5}),
        ({"day": ragserve.Range(below=date(2020, 1, 3))}, {0, 1}),
        ({"lang": "fr"}, set()),
    ],
)
def test_filters(client: ragserve.KnowledgeClient, wanted: dict[str, Any], numbers: set[int]) -> None:
    client.upsert(dated("f", 6))
    found = client.retrieve(vector(1), 10, filter={**wanted, "set": "f"})
    assert {passage.id for passage in found.passages} == {f"f{number}" for number in numbers}
    scores = [passage.score for passage in found.passages]
    assert scores == sorted(scores, reverse=True)
    assert sum(passage.prior for passage in found.passages) == pytest.approx(1 if numbers else 0, abs=1e-5)


def test_queries_of_both_kinds(client: ragserve.KnowledgeClient) -> None:
    client.upsert([{"id": "q", "text": "t", "vector": 50 * vector(7), "metadata": {"a": [1]}}])
    found = client.retrieve(["Old city", vector(7)], 3)
    assert [len(result.passages) for result in found.results] == [3, 3]
    assert {passage.posterior for passage in found.results[0].passages} == {None}
    assert found.results[0].decoded_query == "old city"
    assert found.results[1].passages[0].id == "q"
    assert found.results[1].passages[0].metadata == {"a": [1]}
    pinned = client.retrieve(vector(7), 1, knowledge_version=found.knowledge_version)
    assert pinned.passages == found.results[1].passages[:1]


def lookups(rng: random.Random, count: int) -> list[ragserve.Lookup]:
    made = [ragserve.Lookup(vector(rng.getrandbits(30)), k=rng.choice([1, 3, 8])) for _ in range(count)]
    for number in range(5, count, 7):
        made[number] = replace(made[number], k=0)
    return made


def checked(items: list[ragserve.StreamedLookup], asked: list[ragserve.Lookup]) -> dict[int, list[str]]:
    """The ids of what was found, by number; those with k = 0 must have failed, and they alone."""
    assert sorted(item.number for item in items) == list(range(len(asked)))
    for item in items:
        if asked[item.number].k:
            assert len(item.result().passages) == asked[item.number].k
        else:
            assert isinstance(item.error, ragserve.InvalidInputError)
            assert (item.error.field, item.error.message[:6]) == ("k", "k is 0")
    return {item.number: [p.id for p in item.found.passages] for item in items if item.found}


async def test_streams(client: ragserve.KnowledgeClient, async_client: ragserve.AsyncKnowledgeClient) -> None:
    asked = lookups(random.Random(3), 400)
    items = await asyncio.to_thread(list, client.retrieve_stream(asked))
    by_number = checked(items, asked)
    for number in (0, 1, 399):
        alone = await async_client.retrieve(asked[number].queries, asked[number].k)
        assert by_number[number] == [passage.id for passage in alone.passages]

    async def slowly() -> AsyncIterator[ragserve.Lookup]:
        for one in asked:
            await asyncio.sleep(0)
            yield one

    for given in (asked, slowly()):
        assert checked([item async for item in async_client.retrieve_stream(given)], asked) == by_number


def test_a_stream_answers_before_all_is_asked(client: ragserve.KnowledgeClient) -> None:
    answered = threading.Event()

    def questions() -> Iterator[str]:
        yield "old city"
        assert answered.wait(60)
        yield "new bridge"

    stream = client.retrieve_stream(questions())
    assert next(stream).number == 0
    answered.set()
    assert [item.number for item in stream] == [1]


async def test_what_goes_wrong_while_asking_is_raised_after_the_answers(
    client: ragserve.KnowledgeClient, async_client: ragserve.AsyncKnowledgeClient
) -> None:
    def questions() -> Iterator[Any]:
        yield "old city"
        raise KeyError("broken")

    def take() -> None:
        stream = client.retrieve_stream(questions())
        assert next(stream).number == 0
        with pytest.raises(KeyError, match="broken"):
            next(stream)

    await asyncio.to_thread(take)
    stream = async_client.retrieve_stream(questions())
    assert (await anext(stream)).number == 0
    with pytest.raises(KeyError, match="broken"):
        await anext(stream)
    with pytest.raises(ragserve.InvalidInputError, match="dimension"):
        await asyncio.to_thread(list, client.retrieve_stream([vector(0).reshape(1, 1, -1)]))


def test_leaving_a_stream_ends_it(client: ragserve.KnowledgeClient) -> None:
    def endless() -> Iterator[np.ndarray]:
        while True:
            yield vector(1)

    stream = client.retrieve_stream(endless())
    assert next(stream).result().passages
    stream.close()
    assert client.retrieve("old city").passages


async def test_the_asynchronous_client_does_the_same(async_client: ragserve.AsyncKnowledgeClient) -> None:
    first = (await async_client.info()).knowledge_version
    told: list[tuple[int, int]] = []
    done = await async_client.upsert(dated("a", 30), progress=lambda *counts: told.append(counts))
    assert (done.inserted, told) == (30, [(30, 30)])
    found = await async_client.retrieve("old city", 40, filter={"set": "a"})
    assert len(found.passages) == 30
    assert (await async_client.get(["a1"], knowledge_version=first)).missing_ids == ("a1",)
    assert (await async_client.delete(["a1"])).deleted == 1
    assert (await async_client.diff(first)).added == 29
    back = await async_client.rollback(first)
    assert await async_client.refresh() == back
    assert (await async_client.versions())[-1].version == back
    assert (await async_client.compact(keep_versions=5)).knowledge_version >= back


def test_errors_do_not_name_paths_of_the_server(client: ragserve.KnowledgeClient, home: Home) -> None:
    for call in (lambda: client.rollback(9999), lambda: client.diff(9999)):
        with pytest.raises(ragserve.NotFoundError, match="the knowledge base has no version 9999; it has ") as caught:
            call()
        assert str(home.knowledge.parent) not in str(caught.value)


def test_errors_are_typed(client: ragserve.KnowledgeClient) -> None:
    cases: list[tuple[type[ragserve.RagserveError], str, Any]] = [
        (ragserve.InvalidInputError, "passages", lambda: client.upsert([])),
        (ragserve.InvalidInputError, "passages[1].passage.id", lambda: client.upsert([{"id": "x", "text": "t"}] * 2)),
        (ragserve.InvalidInputError, "passages[0].vector", lambda: client.upsert([wrong_width()])),
        (ragserve.InvalidInputError, "ids", lambda: client.delete([])),
        (ragserve.NotFoundError, "knowledge_version", lambda: client.rollback(10_000)),
        (ragserve.InvalidInputError, "from_version", lambda: client.diff(0)),
        (ragserve.InvalidInputError, "keep_versions", lambda: client.compact(keep_versions=0)),
        (ragserve.NotFoundError, "knowledge_version", lambda: client.retrieve("q", knowledge_version=10_000)),
        (ragserve.InvalidInputError, "options.filter[0].key", lambda: client.retrieve("q", filter={"": "x"})),
        (ragserve.InvalidInputError, "nprobe", lambda: client.retrieve("q", nprobe=3)),
    ]
    for kind, field, call in cases:
        with pytest.raises(kind) as caught:
            call()
        assert (type(caught.value), caught.value.field) == (kind, field)


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"lang": "en", "year": []}, "filter['year'] has 0 values; give 1 to 1000"),
        ({"year": ragserve.none_of()}, "filter['year'] has 0 values; give 1 to 1000"),
        (
            {"year": ragserve.Range()},
            "filter['year'] has 0 kinds of test; give one of equals, any_of, none_of or a range",
        ),
        ({"year": ragserve.Range(at_least=1, above=2)}, "filter['year'] has both at_least and above; give one of them"),
        (
            {"year": ragserve.between(2, 1)},
            "filter['year'] has at_least '2' and at_most '1': no value is between them",
        ),
    ],
)
def test_a_wrong_filter_is_named_by_its_key(client: ragserve.KnowledgeClient, wanted: Any, said: str) -> None:
    with pytest.raises(ragserve.InvalidInputError) as caught:
        client.retrieve("q", filter=wanted)
    assert str(caught.value) == said


def wrong_width() -> ragserve.NewPassage:
    return ragserve.NewPassage("x", "t", vector=np.ones(DIMENSION + 1))


@pytest.mark.long
def test_two_writers_on_one_folder_lose_nothing(home: Home, replica: Replica) -> None:
    """Their ids overlap, so that they come in each other's way; each acknowledged write must be in the history."""
    other = home.replica(**FLAGS)
    acknowledged: dict[int, dict[str, str]] = {}

    def write(target: str, name: str) -> None:
        rng = random.Random(name)
        with ragserve.KnowledgeClient(target, max_attempts=100) as writer:
            for turn in range(15):
                texts = {f"shared{number}": f"{name} {turn} {number}" for number in rng.sample(range(12), 4)}
                texts[f"{name}{turn}"] = f"{name} {turn} own"
                done = writer.upsert({"id": key, "text": text} for key, text in texts.items())
                assert done.knowledge_version not in acknowledged
                acknowledged[done.knowledge_version] = texts

    names = ("one", "two", "three", "four")
    targets = [replica.process.target, other.process.target] * 2
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, targets, names))
    assert len(acknowledged) == 60
    expected: dict[str, str] = {}
    for version in sorted(acknowledged):
        expected.update(acknowledged[version])
    with ragserve.KnowledgeClient(other.process.target) as reader:
        assert reader.refresh() >= max(acknowledged)
        found = reader.get(expected)
        assert {passage.id: passage.text for passage in found.passages} == expected
        for version, texts in acknowledged.items():
            then = reader.get(texts, knowledge_version=version)
            assert {passage.id: passage.text for passage in then.passages} == texts
    other.stop()


@pytest.mark.timeout(300)
def test_a_write_waits_for_a_retriever_that_comes_back(tmp_path: Path) -> None:
    home = Home.build(tmp_path, 5)
    first = home.replica(**FLAGS)
    flags = {**FLAGS, "server.port": first.process.port}
    with ragserve.KnowledgeClient(first.process.target, max_attempts=1000) as client, ThreadPoolExecutor(1) as pool:
        assert client.upsert(dated("b", 2)).inserted == 2
        first.kill()
        with pytest.raises(ragserve.UnavailableError):
            client.rollback(1)
        writing = pool.submit(client.upsert, dated("b", 3))
        second = home.replica(**flags)
        done = writing.result()
        assert (done.inserted, done.updated) == (1, 2)
        assert len(client.get([f"b{number}" for number in range(3)]).passages) == 3
    second.stop()


def test_attempts_end_where_nobody_listens() -> None:
    with ragserve.KnowledgeClient("127.0.0.1:1", max_attempts=2) as client:
        for call in (lambda: client.delete(["a"]), client.info, lambda: list(client.retrieve_stream(["q"]))):
            with pytest.raises(ragserve.UnavailableError):
                call()
    with pytest.raises(ragserve.InvalidInputError, match="max_attempts"):
        ragserve.KnowledgeClient("127.0.0.1:1", max_attempts=0)
