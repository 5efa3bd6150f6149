"""Upserts say which passages are longer than the encoder reads, split on demand, and remove what is left behind."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import ragserve
from ragserve.knowledge_client import KnowledgeClient
from tests.live.harness import Home, Replica
from tests.retriever_svc.models import DIMENSION

LONG = "The old city lies on a river. " * 20


@pytest.fixture(scope="module")
def replica(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    started = Home.build(tmp_path_factory.mktemp("cut")).replica()
    yield started
    started.stop()


@pytest.fixture
def client(replica: Replica) -> Iterator[KnowledgeClient]:
    with KnowledgeClient(replica.process.target) as client:
        yield client


def test_passages_that_are_cut_are_counted_and_named(replica: Replica, client: KnowledgeClient) -> None:
    rows = [{"id": f"long {number}", "text": LONG} for number in range(12)] + [{"id": "short", "text": "a river"}]
    before = replica.metric("ragserve_truncated_passages_total")
    done = client.upsert(rows)
    assert (done.truncated_passages, done.truncated_ids) == (12, tuple(f"long {number}" for number in range(10)))
    assert replica.metric("ragserve_truncated_passages_total") == before + 12
    done = client.upsert([{"id": "given", "text": LONG, "vector": np.ones(DIMENSION, np.float32)}])
    assert done.truncated_passages == 0


def test_a_split_replaces_all_of_the_former_text(replica: Replica, client: KnowledgeClient) -> None:
    first = client.upsert([{"id": "doc", "text": LONG}], split=ragserve.Split())
    chunks = [f"doc#{number}" for number in range(first.inserted)]
    assert len(chunks) > 2
    assert (first.truncated_passages, first.removed_chunks) == (0, 0)
    own = client.upsert([{"id": "own", "text": "a"}, {"id": "own#1", "text": "b"}, {"id": "docs#0", "text": "c"}])
    assert own.inserted == 3
    second = client.upsert([{"id": "doc", "text": LONG}, {"id": "own", "text": "a"}], split=ragserve.Split(words=100))
    assert second.removed_chunks == len(chunks) - 2
    assert client.get([*chunks, "own#1", "docs#0"]).missing_ids == tuple(chunks[2:])
    third = client.upsert([{"id": "doc", "text": "a river"}], split=ragserve.Split())
    assert (third.inserted, third.removed_chunks) == (1, 2)
    assert [version.operation for version in client.versions()][-1] == "upsert"
    before = client.info().passages
    client.rollback(second.knowledge_version)
    assert client.get(["doc#0", "doc#1", "doc"]).missing_ids == ("doc",)
    assert client.info().passages == before + 1
    assert client.retrieve("the river", k=3).passages  # base, overlay and tombstones still fit


def test_a_text_that_was_split_is_deleted_by_its_id(client: KnowledgeClient) -> None:
    count = client.upsert([{"id": "gone", "text": LONG}], split=ragserve.Split()).inserted
    client.upsert([{"id": "mine#1", "text": "a"}, {"id": "both", "text": "a"}, {"id": "both#0", "text": "b"}])
    assert client.delete(["gone"]).missing_ids == ("gone",)
    done = client.delete(["gone", "mine", "both"], chunks=True)
    assert (done.deleted, done.missing_ids) == (count + 1, ("mine",))
    assert [one.id for one in client.get(["gone#0", "mine#1", "both", "both#0"]).passages] == ["mine#1", "both#0"]


def test_what_cannot_be_split_is_refused_by_field(replica: Replica, client: KnowledgeClient) -> None:
    for rows, split, field in (
        ([{"id": "a", "text": "x"}, {"id": "a#1", "text": "y"}], ragserve.Split(), "passages[1].passage.id"),
        ([{"id": "a", "text": "x"}], ragserve.Split(words=1, tokens=1), "split.tokens"),
        ([{"id": "a", "text": "x"}], ragserve.Split(tokens=1000), "split.tokens"),
        ([{"id": "a", "text": "x"}], ragserve.Split(overlap=3), "split.overlap"),
        ([{"id": "a", "text": "x" * 2_000_000}], ragserve.Split(), "passages[0].passage.text"),
    ):
        with pytest.raises(ragserve.InvalidInputError) as refused:
            client.upsert(rows, split=split)
        assert refused.value.field == field


def test_a_long_query_is_told(client: KnowledgeClient) -> None:
    found = client.retrieve(["who?", "who was born in the old river city " * 20])
    (warning,) = found.warnings
    assert warning.startswith("queries[1].text has ")
