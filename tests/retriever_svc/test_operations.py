"""Every version that a writer makes is listed with what made it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from retriever_svc.knowledge import KnowledgeBase
from retriever_svc.live.history import list_versions
from retriever_svc.live.writer import KnowledgeWriter
from retriever_svc.types import Passage

ROOT = Path(__file__).resolve().parents[2]


def test_no_version_is_made_by_an_unknown_operation(tmp_path: Path) -> None:
    path = Path(shutil.copytree(ROOT / "demo" / "kb", tmp_path / "kb"))
    knowledge = KnowledgeBase.open(path)  # no column is marked as the key, so the first write marks it
    writer = KnowledgeWriter(path, knowledge.encoder)
    for name in ("a", "b"):
        writer.upsert([Passage(name, "t", "the old city", "")], np.ones((1, knowledge.dimension), np.float32))
    writer.delete(["a"])
    writer.rollback(1)
    writer.upsert([Passage("c", "t", "the old city", "")], np.ones((1, knowledge.dimension), np.float32))
    writer.compact(10, 3600)
    listed = [version.operation for version in list_versions(path)]
    assert "other" not in listed
    assert listed[:2] == ["build", "settings"]
    assert {"upsert", "delete", "rollback", "compact"} <= set(listed)
