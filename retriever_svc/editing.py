"""Writes to the knowledge base, for the service: checked, embedded, committed, and searchable when they return."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Generic, NoReturn, TypeVar

import numpy as np

from ragserve.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    RagserveError,
    ResourceExhaustedError,
    UnavailableError,
)
from ragserve.passage_rules import MAX_PASSAGE_BYTES, PassageLimits
from ragserve.serving.logs import fields
from ragserve.serving.metrics import StageClock
from retriever_svc.encoder import TextEncoder
from retriever_svc.live.follower import Follower
from retriever_svc.live.priority import be_nice
from retriever_svc.live.writer import Compaction, Deletion, KnowledgeWriter, Proceed, Upsert
from retriever_svc.requests import chunks_of, split_passages
from retriever_svc.splitting import Cut, SplitOptions
from retriever_svc.types import Float32, NewPassage, Truncated

CHUNK_PASSAGES = 64  # embedded together, sorted by length
KEPT_CUTS = 4  # the ways to split that were used last; each holds a tokenizer
RETRY_SECONDS = 1.0

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class EditOptions:
    """Whether and how much may be written; each is documented in `RetrieverSettings`."""

    writable: bool = True
    max_waiting: int = 64
    max_passage_bytes: int = MAX_PASSAGE_BYTES


class CallerLeftError(RagserveError):
    """Nobody waits for a write any more; nothing of it was committed."""


@dataclass
class _Write(Generic[T]):
    """A write that was asked for, and whether its caller still waits; `until` is its deadline in monotonic seconds."""

    operation: str
    work: Callable[[Proceed], T]
    until: float | None
    caller_left: bool = False

    def leave(self) -> None:
        """The caller has left. A write that still queues no longer holds what it would have written."""
        self.caller_left, self.work = True, self._refuse

    def require_caller(self) -> None:
        """Raises CallerLeftError or DeadlineExceededError where nobody waits any more."""
        if self.caller_left:
            raise CallerLeftError(f"the caller of the {self.operation} has left: nothing was written")
        if self.until is not None and time.monotonic() >= self.until:
            raise DeadlineExceededError(f"the deadline of the {self.operation} has passed: nothing was written")

    def _refuse(self, _: Proceed) -> NoReturn:
        raise CallerLeftError(f"the caller of the {self.operation} has left: nothing was written")


class Editor:
    """Runs writes one after another in a thread that lets searches go first.

    A write is given up when its caller leaves or its deadline passes, until its commit begins. From then on it is
    completed.
    """

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
        self._load_cut = lru_cache(maxsize=KEPT_CUTS)(load_cut)
        self._limits = PassageLimits(options.max_passage_bytes)
        self._encoder: TextEncoder | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="editor", initializer=be_nice)
        self._waiting = 0
        self._lock = threading.Lock()  # of `_waiting`
        self._ending = False

    async def upsert(
        self,
        passages: Sequence[NewPassage],
        clock: StageClock,
        split: SplitOptions | None = None,
        seconds_left: float | None = None,
    ) -> tuple[Upsert, Truncated]:
        """Add or replace passages in one commit; the clock gets the stages embed, commit and apply.

        Also says which passages are longer than the passage encoder reads. `seconds_left`: until the caller's deadline.
        Raises what `split_passages` and `KnowledgeWriter.upsert` raise, and see `_run`.
        """

        def work(proceed: Proceed) -> tuple[Upsert, Truncated]:
            with clock.measure("embed"):
                new, chunks = self._split(passages, split)
                vectors, truncated = self._vectors(new, proceed)
            stored = [one.passage for one in new]
            return self._measured(lambda: self._writer.upsert(stored, vectors, chunks, proceed), clock), truncated

        return await self._run("upsert", work, clock, seconds_left)

    async def delete(
        self, ids: Sequence[str], clock: StageClock, seconds_left: float | None = None, *, chunks: bool = False
    ) -> Deletion:
        """Delete passages in one commit. Raises what `KnowledgeWriter.delete` raises, and see `_run`."""

        def work(proceed: Proceed) -> Deletion:
            return self._measured(lambda: self._writer.delete(ids, proceed, chunks=chunks), clock)

        return await self._run("delete", work, clock, seconds_left)

    async def rollback(self, version: int, clock: StageClock, seconds_left: float | None = None) -> int:
        """Commit the content of an older version. Raises what `KnowledgeWriter.rollback` raises, and see `_run`."""

        def work(proceed: Proceed) -> int:
            return self._measured(lambda: self._writer.rollback(version, proceed), clock)

        return await self._run("rollback", work, clock, seconds_left)

    async def compact(
        self, keep_versions: int, keep_seconds: float, clock: StageClock, seconds_left: float | None = None
    ) -> Compaction:
        """Compact the files. Raises what `KnowledgeWriter.compact` raises, and see `_run`."""

        def work(proceed: Proceed) -> Compaction:
            return self._measured(lambda: self._writer.compact(keep_versions, keep_seconds, proceed), clock)

        return await self._run("compact", work, clock, seconds_left)

    def give_up(self) -> None:
        """Begin no commit any more, and embed no further."""
        self._ending = True

    def close(self) -> None:
        """Finish what is being committed."""
        self._thread.shutdown(cancel_futures=True)

    async def _run(
        self, operation: str, work: Callable[[Proceed], T], clock: StageClock, seconds_left: float | None
    ) -> T:
        """Run one write and load what it committed.

        Raises:
            FailedPreconditionError: this replica takes no writes, or its folder was replaced by another one.
            ResourceExhaustedError: too many writes wait.
            DeadlineExceededError: the deadline passed before the commit began.
            UnavailableError: the service stopped before the commit began.
        """
        if not self._options.writable:
            raise FailedPreconditionError(
                "this retriever is read-only (writable=false): write to another replica, or serve a knowledge base of "
                "your own with 'ragserve up --knowledge KB'"
            )
        if self._waiting >= self._options.max_waiting:
            raise ResourceExhaustedError(
                f"the queue of writes is full: {self._waiting} waiting", retry_after_seconds=RETRY_SECONDS
            )
        until = None if seconds_left is None else time.monotonic() + seconds_left
        write = _Write(operation, work, until)
        self._count(1)
        running = self._thread.submit(self._commit, write, clock)
        running.add_done_callback(lambda _: self._count(-1))
        try:
            return await asyncio.wrap_future(running)
        except asyncio.CancelledError:
            write.leave()
            raise

    def _count(self, change: int) -> None:
        with self._lock:
            self._waiting += change

    def _commit(self, write: _Write[T], clock: StageClock) -> T:
        """In the thread: one write, and what it committed is loaded."""

        def proceed() -> None:
            if self._ending:
                raise UnavailableError("the retriever is shutting down: nothing was written")
            write.require_caller()

        try:
            proceed()
            result = write.work(proceed)
        except (CallerLeftError, DeadlineExceededError) as error:
            log.info("a write is given up", extra=fields(operation=write.operation, reason=error.message))
            raise
        if write.caller_left:
            log.info("committed after the caller had left", extra=fields(operation=write.operation))
        with clock.measure("apply"):
            try:
                self._follower.refresh()
            except Exception as error:  # it is committed all the same; the next refresh tries again
                log.exception("committed, but not loaded", extra=fields(operation=write.operation, reason=error))
        self._changed(write.operation)
        return result

    def _split(
        self, passages: Sequence[NewPassage], split: SplitOptions | None
    ) -> tuple[Sequence[NewPassage], dict[str, int] | None]:
        """The passages that are to be stored, and how many of them each passage became, by its id."""
        if split is None:
            for number, one in enumerate(passages):
                if one.vector is None:  # refuse a text that cannot be encoded
                    chunks_of(number, one, self._load_cut(SplitOptions("none")))
            return passages, None
        new = split_passages(passages, self._load_cut(split), self._limits)
        return [one for chunks in new for one in chunks], {
            given.passage.id: len(chunks) for given, chunks in zip(passages, new, strict=True)
        }

    def _vectors(self, passages: Sequence[NewPassage], proceed: Proceed) -> tuple[Float32, Truncated]:
        """The vectors given, and those that the passage encoder makes for the others, [n_passages, dim]."""
        truncated = Truncated()
        vectors = np.empty((len(passages), self._follower.newest.dimension), np.float32)
        rows = [row for row, new in enumerate(passages) if new.vector is None]
        for row, new in enumerate(passages):
            if new.vector is not None:
                vectors[row] = new.vector
        for start in range(0, len(rows), CHUNK_PASSAGES):
            proceed()
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
        """Commits and records the time. Raises FailedPreconditionError if the folder holds another history."""
        with clock.measure("commit"):
            self._follower.check_history()
            return commit()
