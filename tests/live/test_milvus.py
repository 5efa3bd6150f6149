"""The story of `test_nothing_lost` again, where the index is in a real Milvus server instead of the process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.live.test_nothing_lost import chosen_seed, run
from tests.retriever_svc.index.milvus_server import MilvusServer


@pytest.mark.long
@pytest.mark.timeout(600)
def test_upserts_and_versions_keep_their_meaning_on_milvus(tmp_path: Path) -> None:
    server = MilvusServer.start(tmp_path / "milvus", tmp_path / "milvus.log")
    try:
        run(tmp_path, steps=300, restarts=2, seed=chosen_seed(), milvus_uri=server.uri)
    finally:
        server.kill()
