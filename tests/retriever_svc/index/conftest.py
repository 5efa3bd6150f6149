from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.retriever_svc.index.milvus_server import MilvusServer


@pytest.fixture(scope="session")
def milvus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MilvusServer]:
    directory = tmp_path_factory.mktemp("milvus")
    server = MilvusServer.start(directory / "data", directory / "log")
    yield server
    server.kill()
