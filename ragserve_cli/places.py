"""Where a knowledge base is changed: in its files, or through a running retriever. Both do the same."""

# ruff: noqa: D102  (`Place` describes the methods)

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ragserve.knowledge import Compacted, Deleted, KnowledgeVersion, NewPassage, Split, Upserted, VersionDiff
from ragserve.knowledge_client import KnowledgeClient
from ragserve_cli.reach import reached

if TYPE_CHECKING:
    from retriever_svc.build.sources import SourcePassage
    from retriever_svc.splitting import SplitOptions

Report = Callable[[int], None]


class Place(Protocol):
    """What `ragserve kb` does to a knowledge base. All raise the errors of `ragserve.errors`."""

    def upsert(self, rows: Sequence[list[SourcePassage]], split: SplitOptions, report: Report) -> Upserted:
        """Adds or replaces rows, each as the passages that it became, in one commit.

        `split` says how they were or are to be split; `report` is told how many passages are embedded, or rows sent.
        """

    def delete(self, ids: Sequence[str]) -> Deleted:
        """Deletes passages, and the parts of those that were split, in one commit."""

    def versions(self) -> Sequence[KnowledgeVersion]:
        """The versions that can be read, oldest first."""

    def rollback(self, version: int) -> int:
        """Commits the content of an older version; the new one's number."""

    def diff(self, from_version: int, to_version: int, limit: int) -> VersionDiff:
        """What differs between two versions."""

    def compact(self, keep_versions: int | None, keep_seconds: float | None) -> Compacted:
        """Compacts the files and removes old versions."""


class Running:
    """The knowledge base of a running retriever."""

    def __init__(self, client: KnowledgeClient) -> None:
        self._client = client

    def upsert(self, rows: Sequence[list[SourcePassage]], split: SplitOptions, report: Report) -> Upserted:
        """Sends; the retriever splits, embeds and commits."""
        new = (
            NewPassage(one.id, one.text, one.title, json.loads(one.metadata_json) if one.metadata_json else {})
            for (one,) in rows
        )
        wanted = None if split.whole else Split(split.words or 0, split.tokens or 0, split.overlap)
        return self._client.upsert(new, split=wanted, progress=lambda sent, _total: report(sent))

    def delete(self, ids: Sequence[str]) -> Deleted:
        return self._client.delete(ids, chunks=True)

    def versions(self) -> Sequence[KnowledgeVersion]:
        return self._client.versions()

    def rollback(self, version: int) -> int:
        return self._client.rollback(version)

    def diff(self, from_version: int, to_version: int, limit: int) -> VersionDiff:
        return self._client.diff(from_version, to_version, limit=limit)

    def compact(self, keep_versions: int | None, keep_seconds: float | None) -> Compacted:
        return self._client.compact(keep_versions=keep_versions, keep_seconds=keep_seconds)


@contextmanager
def opened(knowledge: Path | None, retriever: str | None, model: Path | None = None) -> Iterator[Place]:
    """The files, or, where a retriever is named, what it serves. A write may take as long as it takes."""
    if retriever is None and knowledge is not None:
        from ragserve_cli.files_place import Files  # noqa: PLC0415  (slow to import, and a retriever needs none of it)

        yield Files(knowledge, model)
        return
    target = retriever or ""
    with KnowledgeClient(target, write_timeout_seconds=None) as client:
        with reached(target, options="--retriever"):
            client.info()  # says at once when nobody is there
        yield Running(client)
