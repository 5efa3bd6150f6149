"""Histories of a knowledge base whose index is on a Milvus server: the same that FAISS goes through."""

from __future__ import annotations

from pathlib import Path

import pytest

from retriever_svc import kinds
from tests.retriever_svc.index.milvus_server import MilvusServer
from tests.retriever_svc.live_home import Home
from tests.retriever_svc.test_live_snapshots import history, rng


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF4,Flat"])
def test_every_loaded_version_answers_as_brute_force(
    milvus: MilvusServer, tmp_path: Path, factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kinds, "SCANNED_ROWS", 10)
    history(Home(tmp_path / "kb", rng(), factory, milvus=milvus.uri), steps=30)
