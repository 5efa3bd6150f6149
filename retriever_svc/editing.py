"""Writes to the knowledge base, for the service: checked, embedded, committed, and searchable when they return."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from ragserve.errors import FailedPreconditionError, ResourceExhaustedError, UnavailableError
from ragserve.passage_rules import MAX_PASSAGE_BYTES, PassageLimits
from ragserve.serving.logs import fields
from ragserve.serving.metrics import StageClock
from retriever_svc.encoder import TextEncoder
from retriever_svc.live.follower import Follower
from retriever_svc.live.priority import be_nice
from retriever_svc.live.writer import Compaction, Deletion, KnowledgeWriter, Upsert
from retriever_svc.requests import split_passages
from retriever_svc.splitting import Cut, SplitOptions
from retriever_svc.types import Float32, NewPassage, Truncated

CHUNK_PASSAGES = 64  # embedded together, sorted by length
RETRY_SECONDS = 1.0

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class EditOptions:
    """Whether and how much may be written; each is documented in `RetrieverSettings`."""

    writable: bool = True
    max_waiting: int = 64
    max_passage_bytes: int = MAX_PASSAGE_BYTES


class Editor:
    """Runs writes one after another in a thread that lets searches go first."""

    def __init__(
        self,
        writer: KnowledgeWriter,
        follower: Follower,
        load_encoder: Callable[[], TextEncoder],
        load_cut: Callable[[SplitOptions], Cut | None],
        options: EditOptions,
        changed: Callable[[str], None],
    ) -> None:
        """Nothing is loaded yet.

        `load_encoder` gives the passage encoder when first needed, `load_cut` what splits texts for it; `changed` is
        told each commit's operation.
        """
        self._writer = writer
        self._follower = follower
        self._load_encoder = load_encoder
        self._options = options
        self._changed = changed
        self._load_cut = load_cut
        self._limits = PassageLimits(options.max_passage_bytes)
        self._encoder: TextEncoder | None = None
        self._cut: tuple[SplitOptions, Cut | None] | None = None  # the one used last
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="editor", initializer=be_nice)
        self._waiting = 0
        self._ending = False

    async def upsert(
        self, passages: Sequence[NewPassage], clock: StageClock, split: SplitOptions | None = None
    ) -> tuple[Upsert, Truncated]:
        """Add or replace passages in one commit; the clock gets the stages embed, commit and apply.

        Also says which passages are longer than the passage encoder reads. Raises what `split_passages` and
        `KnowledgeWriter.upsert` raise, and see `_run`.
        """

        def work() -> tuple[Upsert, Truncated]:
            with clock.measure("embed"):
                new, chunks = self._split(passages, split)
                vectors, truncated = self._vectors(new)
            stored = [one.passage for one in new]
            return self._measured(lambda: self._writer.upsert(stored, vectors, chunks), clock), truncated

        return await self._run("upsert", work, clock)

    async def delete(self, ids: Sequence[str], clock: StageClock) -> Deletion:
        """Delete passages in one commit. Raises what `KnowledgeWriter.delete` raises, and see `_run`."""
        return await self._run("delete", lambda: self._measured(lambda: self._writer.delete(ids), clock), clock)

    async def rollback(self, version: int, clock: StageClock) -> int:
        """Commit the content of an older version. Raises what `KnowledgeWriter.rollback` raises, and see `_run`."""
        return await self._run("rollback", lambda: self._measured(lambda: self._writer.rollback(version), clock), clock)

    async def compact(self, keep_versions: int, keep_seconds: float, clock: StageClock) -> Compaction:
        """Compact the files. Raises what `KnowledgeWriter.compact` raises, and see `_run`."""
        return await self._run(
            "compact", lambda: self._measured(lambda: self._writer.compact(keep_versions, keep_seconds), clock), clock
        )

    def give_up(self) -> None:
        """Embed no further: what is not being committed fails."""
        self._ending = True

    def close(self) -> None:
        """Finish what is being committed."""
        self._thread.shutdown(cancel_futures=True)

    async def _run(self, operation: str, work: Callable[[], T], clock: StageClock) -> T:
        """Run one write and load what it committed.

        Raises:
            FailedPreconditionError: this replica takes no writes, or its folder was replaced by another one.
            ResourceExhaustedError: too many writes wait.
        """
        if not self._options.writable:
            raise FailedPreconditionError("this replica is read-only: write to one started with writable=true")
        if self._waiting >= self._options.max_waiting:
            raise ResourceExhaustedError(f"{self._waiting} writes wait already", retry_after_seconds=RETRY_SECONDS)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._commit, operation, work, clock)
        finally:
            self._waiting -= 1

    def _commit(self, operation: str, work: Callable[[], T], clock: StageClock) -> T:
        result = work()
        with clock.measure("apply"):
            try:
                self._follower.refresh()
            except Exception as error:  # it is committed all the same; the next refresh tries again
                log.exception("committed, but not loaded", extra=fields(operation=operation, reason=error))
        self._changed(operation)
        return result

    def _split(
        self, passages: Sequence[NewPassage], split: SplitOptions | None
    ) -> tuple[Sequence[NewPassage], dict[str, int] | None]:
        """The passages that are to be stored, and how many of them each passage became, by its id."""
        if split is None:
            return passages, None
        if self._cut is None or self._cut[0] != split:
            self._cut = split, self._load_cut(split)
        new = split_passages(passages, self._cut[1], self._limits)
        return [one for chunks in new for one in chunks], {
            given.passage.id: len(chunks) for given, chunks in zip(passages, new, strict=True)
        }

    def _vectors(self, passages: Sequence[NewPassage]) -> tuple[Float32, Truncated]:
        """The vectors given, and those that the passage encoder makes for the others, [n_passages, dim]."""
        truncated = Truncated()
        vectors = np.empty((len(passages), self._follower.newest.dimension), np.float32)
        rows = [row for row, new in enumerate(passages) if new.vector is None]
        for row, new in enumerate(passages):
            if new.vector is not None:
                vectors[row] = new.vector
        for start in range(0, len(rows), CHUNK_PASSAGES):
            if self._ending:
                raise UnavailableError("the retriever is shutting down: nothing was written")
            chunk = rows[start : start + CHUNK_PASSAGES]
            texts = [passages[row].passage for row in chunk]
            vectors[chunk] = self._passage_encoder().encode_passages(
                texts,
                lambda row, texts=texts: truncated.add(texts[row].id),  # type: ignore[misc]
            )
        return vectors, truncated

    def _passage_encoder(self) -> TextEncoder:
        if self._encoder is None:
            self._encoder = self._load_encoder()
        return self._encoder

    def _measured(self, commit: Callable[[], T], clock: StageClock) -> T:
        """What a commit returns, its time in the clock; not made where this replica could not load it."""
        with clock.measure("commit"):
            self._follower.check_history()
            return commit()
