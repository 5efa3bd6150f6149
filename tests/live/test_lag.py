"""The metric of how far a replica is behind, while it loads what was committed elsewhere."""

from __future__ import annotations

from pathlib import Path

from retriever_svc.knowledge import KnowledgeBase
from retriever_svc.live.writer import KnowledgeWriter
from tests.live.harness import Home, eventually

ROWS = 10_000


def test_a_version_that_takes_long_to_load_counts_as_lag_until_it_is(tmp_path: Path) -> None:
    """A rollback over all passages is indexed as a whole before it answers."""
    home = Home.build(tmp_path)
    writer = KnowledgeWriter(home.knowledge, KnowledgeBase.open(home.knowledge).encoder)
    home.grow(ROWS)
    assert writer.rollback(1) == 3
    replica = home.replica(index_factory="HNSW256", keep_versions=1, refresh_seconds=0.4)
    eventually(lambda: replica.metric("ragserve_knowledge_lag_versions") == 0)
    assert writer.rollback(2) == 4
    eventually(lambda: "indexed from scratch" in replica.process.log_text())
    eventually(lambda: replica.metric("ragserve_knowledge_lag_versions") == 1)
    assert replica.info().knowledge_version == 3
    eventually(lambda: replica.info().knowledge_version == 4)
    eventually(lambda: replica.metric("ragserve_knowledge_lag_versions") == 0)
    assert replica.info().passages == ROWS + 40
    replica.stop()
