"""A year column of float64, as pandas makes it, filtered through a running retriever with FAISS or Milvus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import ragserve
from retriever_svc.build import build_knowledge_base
from retriever_svc.loading import RetrievalOptions
from tests.live.harness import Home
from tests.retriever_svc.index.milvus_server import MilvusServer
from tests.retriever_svc.models import write_model

YEARS = [1990.0, 1991.0, None, -0.0]


@pytest.fixture(scope="module", params=["faiss", "milvus"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    directory = tmp_path_factory.mktemp("home")
    model, source = write_model(directory / "model", own_passage_encoder=False), directory / "years.parquet"
    ids = [f"p{number}" for number in range(len(YEARS))]
    pq.write_table(pa.table({"id": ids, "text": [f"text {one}" for one in ids], "year": pa.array(YEARS)}), source)
    build_knowledge_base(source, directory / "kb", model, options=RetrievalOptions(device="cpu", threads=1))
    server = MilvusServer.start(directory / "milvus", directory / "log") if request.param == "milvus" else None
    flags = {"milvus_uri": server.uri} if server else {}
    replica = Home(model, directory / "kb", directory / "logs").replica(**flags)
    with ragserve.KnowledgeClient(replica.process.target) as client:
        client.upsert(
            [
                {"id": "later", "text": "text later", "metadata": {"year": 1990}},
                {"id": "csv", "text": "text csv", "metadata": {"year": "1990.0"}},  # as pandas writes it
            ]
        )
        yield client
    replica.stop()
    if server:
        server.kill()


@pytest.mark.parametrize(
    ("wanted", "ids"),
    [
        (1990, {"p0", "later", "csv"}),
        (1990.0, {"p0", "later", "csv"}),
        ("1990", {"p0", "later", "csv"}),
        ([1990], {"p0", "later", "csv"}),
        (["1991.0", 7], {"p1"}),
        (ragserve.between(1990, 1990), {"p0", "later", "csv"}),
        (0.0, {"p3"}),
        (ragserve.none_of(1990, 0), {"p1", "p2"}),
    ],
)
def test_a_year_is_found_however_it_is_written(client: ragserve.KnowledgeClient, wanted: Any, ids: set[str]) -> None:
    found = client.retrieve("text", k=6, filter={"year": wanted})
    assert {passage.id for passage in found.passages} == ids
