"""A knowledge base changed in its files on this machine."""

# ruff: noqa: D102  (`Place` describes the methods)

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from ragserve.calls import Retries, TimeLeft
from ragserve.errors import AbortedError
from ragserve.knowledge import Compacted, Deleted, KnowledgeVersion, Upserted, VersionDiff
from ragserve_cli.places import Report
from retriever_svc.build.sources import SourcePassage
from retriever_svc.encoder import TextEncoder
from retriever_svc.knowledge import KnowledgeBase
from retriever_svc.live import history
from retriever_svc.live.writer import DEFAULT_KEEP_SECONDS, DEFAULT_KEEP_VERSIONS, KnowledgeWriter
from retriever_svc.loading import RetrievalOptions, load_passage_encoder
from retriever_svc.splitting import SplitOptions, chunk_parent
from retriever_svc.types import Float32, Passage, Truncated

CHUNK_PASSAGES = 64  # embedded together
RETRIES = Retries(max_attempts=20)  # after another writer was first

T = TypeVar("T")


class Files:
    """A knowledge base on this machine."""

    def __init__(self, path: Path, model: Path | None = None) -> None:
        """`model`: its passage encoder embeds what is added; without it nothing can be."""
        knowledge = KnowledgeBase.open(path)
        self._path = path
        self._encoder: TextEncoder | None = None
        if model is not None:
            self._encoder, found = load_passage_encoder(model, RetrievalOptions())
            knowledge.require_servable(found)
        self._writer = KnowledgeWriter(path, knowledge.encoder)

    def upsert(self, rows: Sequence[list[SourcePassage]], split: SplitOptions, report: Report) -> Upserted:
        """Embeds, and commits; what is embedded is kept when another writer is first."""
        new = [Passage(one.id, one.title, one.text, one.metadata_json) for row in rows for one in row]
        vectors, truncated = self._embed(new, report)
        chunks = None if split.whole else {_parent(row): len(row) for row in rows}
        done = _racing(lambda: self._writer.upsert(new, vectors, chunks))
        return Upserted(
            done.version,
            done.inserted,
            done.updated,
            truncated_passages=truncated.count,
            truncated_ids=tuple(truncated.names),
            removed_chunks=done.removed,
        )

    def _embed(self, passages: Sequence[Passage], report: Report) -> tuple[Float32, Truncated]:
        if self._encoder is None:
            raise ValueError("upsert without a model")
        truncated = Truncated()
        vectors = np.empty((len(passages), self._encoder.config.dim), np.float32)
        for start in range(0, len(passages), CHUNK_PASSAGES):
            chunk = passages[start : start + CHUNK_PASSAGES]
            vectors[start : start + len(chunk)] = self._encoder.encode_passages(
                chunk,
                lambda row, chunk=chunk: truncated.add(chunk[row].id),  # type: ignore[misc]
            )
            report(start + len(chunk))
        return vectors, truncated

    def delete(self, ids: Sequence[str]) -> Deleted:
        """Deletes passages, and the parts of those that were split."""
        done = _racing(lambda: self._writer.delete(ids, chunks=True))
        return Deleted(done.version, done.deleted, done.missing)

    def versions(self) -> Sequence[KnowledgeVersion]:
        return [
            KnowledgeVersion(one.version, one.created_unix_seconds, one.passages, one.operation)
            for one in history.list_versions(self._path)
        ]

    def rollback(self, version: int) -> int:
        return _racing(lambda: self._writer.rollback(version))

    def diff(self, from_version: int, to_version: int, limit: int) -> VersionDiff:
        return VersionDiff(**vars(history.diff_versions(self._path, from_version, to_version, limit)))

    def compact(self, keep_versions: int | None, keep_seconds: float | None) -> Compacted:
        versions = DEFAULT_KEEP_VERSIONS if keep_versions is None else keep_versions
        seconds = DEFAULT_KEEP_SECONDS if keep_seconds is None else keep_seconds
        done = _racing(lambda: self._writer.compact(versions, seconds))
        return Compacted(done.version, done.versions_removed, done.bytes_removed)


def _parent(row: Sequence[SourcePassage]) -> str:
    """The id of a row that became these passages."""
    return row[0].id if len(row) == 1 else chunk_parent(row[0].id) or row[0].id


def _racing(write: Callable[[], T]) -> T:
    """Writes again after another writer was first."""
    return RETRIES.run(write, (AbortedError,), TimeLeft.of(None))
