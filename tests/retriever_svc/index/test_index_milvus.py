"""What only a server can get wrong: half-built collections, replicas, old ones, a server that is gone."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pymilvus
import pytest

from ragserve.errors import FailedPreconditionError, InvalidInputError, UnavailableError
from retriever_svc.index import IndexSpec, SearchOptions, milvus_index
from retriever_svc.index.milvus_index import MilvusIndex, collection_name, drop_unused
from tests.retriever_svc.index.milvus_server import MilvusServer
from tests.retriever_svc.index.sources import ArraySource, clustered

SPEC = IndexSpec("Flat")
SOURCE = ArraySource(clustered(300, 8))
QUERIES = clustered(5, 8, seed=1)


def build(server: MilvusServer, content: str, source: ArraySource = SOURCE, spec: IndexSpec = SPEC) -> MilvusIndex:
    return MilvusIndex.build(source, spec, uri=server.uri, content=content)


def best(source: ArraySource, k: int = 5) -> list:
    return np.argsort(-(QUERIES @ source.array.T), axis=1)[:, :k].tolist()


@pytest.fixture
def client(milvus: MilvusServer) -> Iterator[pymilvus.MilvusClient]:
    client = pymilvus.MilvusClient(uri=milvus.uri)
    yield client
    client.close()


class Interrupted(ArraySource):
    """A source that fails after its first block."""

    def vector_blocks(self) -> Iterator[np.ndarray]:
        yield self.array[:100]
        raise InterruptedError


def test_replicas_with_the_same_content_share_a_collection(milvus: MilvusServer) -> None:
    first, second = build(milvus, "shared"), build(milvus, "shared", Interrupted(SOURCE.array))  # reads nothing
    assert first.collection == second.collection
    assert first.search(QUERIES, 5)[1].tolist() == second.search(QUERIES, 5)[1].tolist() == best(SOURCE)
    first.close()
    assert second.search(QUERIES, 5)[1].tolist() == best(SOURCE)
    second.close()


def test_versions_live_side_by_side(milvus: MilvusServer) -> None:
    newer = ArraySource(clustered(200, 8, seed=9))
    indexes = [build(milvus, "version 1"), build(milvus, "version 2", newer)]
    assert [index.search(QUERIES, 5)[1].tolist() for index in indexes] == [best(SOURCE), best(newer)]
    assert collection_name("1", SPEC) != collection_name("1", IndexSpec("HNSW16"))


def test_an_interrupted_build_leaves_nothing(milvus: MilvusServer, client: pymilvus.MilvusClient) -> None:
    before = set(client.list_collections())
    with pytest.raises(InterruptedError):
        build(milvus, "interrupted", Interrupted(SOURCE.array))
    assert set(client.list_collections()) == before
    assert build(milvus, "interrupted").search(QUERIES, 5)[1].tolist() == best(SOURCE)


def test_a_collection_that_lacks_rows_is_built_again(milvus: MilvusServer, client: pymilvus.MilvusClient) -> None:
    name = build(milvus, "damaged").collection
    client.delete(name, ids=list(range(50)))
    again = build(milvus, "damaged")
    assert again.collection == name
    assert again.search(QUERIES, 5)[1].tolist() == best(SOURCE)


def test_what_is_not_in_use_is_dropped(milvus: MilvusServer, client: pymilvus.MilvusClient) -> None:
    used, old = build(milvus, "used").collection, build(milvus, "old").collection
    schema = client.create_schema()
    schema.add_field("id", pymilvus.DataType.INT64, is_primary=True)
    schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=4)
    theirs, begun, stale = "somebody_elses", f"{old}_building_1", f"{old}_building_2"
    now = milvus_index.time.time()
    for name, started in ((theirs, 0), (begun, now), (stale, now - 2 * milvus_index.ABANDONED_SECONDS)):
        client.create_collection(name, schema=schema, properties={"ragserve.started": str(started)})
    assert not set(drop_unused(milvus.uri, {used}, min_age_seconds=3600)) & {used, old, theirs, begun}
    dropped = drop_unused(milvus.uri, {used})
    assert old in dropped
    left = set(client.list_collections())
    assert {used, theirs, begun} <= left
    assert not {old, stale} & left


@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_masks_too_long_for_a_filter_find_the_same(
    milvus: MilvusServer, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    index = build(milvus, "shared")
    allowed = np.random.default_rng(0).random(SOURCE.size) < share
    n = min(5, int(allowed.sum()))
    expected = np.argsort(-np.where(allowed, QUERIES @ SOURCE.array.T, -np.inf), axis=1)[:, :n].tolist()
    assert index.search(QUERIES, n, SearchOptions(allowed=allowed))[1].tolist() == expected
    monkeypatch.setattr(milvus_index, "SHORT_FILTER", 3)
    assert index.search(QUERIES, n, SearchOptions(allowed=allowed))[1].tolist() == expected
    monkeypatch.setattr(milvus_index, "MOST_CANDIDATES", 8)
    assert index.search(QUERIES, n, SearchOptions(allowed=allowed))[1].tolist() == expected


def test_a_server_that_is_gone_is_named(tmp_path: Path) -> None:
    server = MilvusServer.start(tmp_path / "data", tmp_path / "log")
    index = build(server, "gone")
    server.kill()
    with pytest.raises(UnavailableError, match="milvus_uri") as caught:
        index.search(QUERIES, 5)
    assert caught.value.field == "milvus_uri"
    with pytest.raises(UnavailableError, match="milvus_uri"):
        build(server, "gone")


def test_a_collection_that_is_gone_is_named(milvus: MilvusServer) -> None:
    index = build(milvus, "dropped")
    drop_unused(milvus.uri, set())
    with pytest.raises(UnavailableError, match="next start"):
        index.search(QUERIES, 5)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (IndexSpec("OPQ4,IVF16,PQ4"), "index_factory"),
        (IndexSpec("Flat", precision="float16"), "index_precision"),
        (IndexSpec("Flat", search_parameters="nprobe=3"), "index_search_parameters"),
        (IndexSpec("HNSW16", search_parameters="M=3"), "index_search_parameters"),
    ],
)
def test_what_milvus_has_not_is_named(milvus: MilvusServer, spec: IndexSpec, field: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        build(milvus, "wrong", spec=spec)
    assert caught.value.field == field


def test_what_the_server_refuses_is_named(milvus: MilvusServer, client: pymilvus.MilvusClient) -> None:
    before = set(client.list_collections())
    with pytest.raises(FailedPreconditionError, match="IVF_PQ"):
        build(milvus, "refused", spec=IndexSpec("IVF4,PQ2"))  # milvus-lite has none; a Milvus cluster has
    assert set(client.list_collections()) == before


def test_a_wrong_address_is_named() -> None:
    with pytest.raises(FailedPreconditionError, match="milvus_uri"):
        MilvusIndex.build(SOURCE, SPEC, uri="nonsense", content="1")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(FailedPreconditionError, match="extra 'milvus'"):
        MilvusIndex.build(SOURCE, SPEC, uri="http://127.0.0.1:1", content="1")
