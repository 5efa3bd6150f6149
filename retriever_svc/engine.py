"""The retriever without its transport: checks requests, joins them into batches and answers from a loaded version."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ragserve.errors import NotFoundError, UnavailableError
from ragserve.serving.batching import Batcher
from ragserve.serving.logs import fields
from ragserve.serving.metrics import Metrics, StageClock, StageTiming
from retriever_svc.loading import RetrievalOptions, load_searcher, load_snapshot
from retriever_svc.requests import RequestLimits, check_k, check_queries
from retriever_svc.searcher import Lookup, Searcher, Snapshot
from retriever_svc.types import Query, QueryHits

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Retrieval:
    """Results in the order of the queries, the version that gave them, and the stages of the work."""

    results: tuple[QueryHits, ...]
    knowledge_version: int
    timings: tuple[StageTiming, ...]


@dataclass(frozen=True)
class RetrieverInfo:
    """What is loaded, and the limits of a request."""

    knowledge_version: int
    passages: int
    dimension: int
    index_factory: str
    device: str
    score_scale: float
    max_k: int
    max_batch_queries: int


@dataclass(frozen=True)
class _Job:
    """A request in the queue since a moment (monotonic seconds), and the clock that its stages are added to."""

    lookup: Lookup
    clock: StageClock
    since: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class _Loaded:
    """What start loads. `snapshots` holds every version that can answer, by its number."""

    searcher: Searcher
    snapshots: dict[int, Snapshot]
    batcher: Batcher[_Job, tuple[QueryHits, ...]]

    @property
    def newest(self) -> Snapshot:
        return self.snapshots[max(self.snapshots)]


class RetrieverEngine:
    """Answers retrieval requests. `start` before the first request, `stop` after the last."""

    def __init__(
        self,
        model: Path,
        knowledge: Path,
        *,
        options: RetrievalOptions,
        limits: RequestLimits,
        max_waiting: int,
        metrics: Metrics,
    ) -> None:
        self._model = model
        self._knowledge = knowledge
        self._options = options
        self._limits = limits
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._version = metrics.gauge("ragserve_knowledge_version", "Version of the knowledge base that answers.")
        self._passages = metrics.gauge("ragserve_knowledge_passages", "Passages in that version.")
        self._loaded: _Loaded | None = None

    async def start(self) -> None:
        """Load model and knowledge base. Raises what `loading` raises."""
        searcher, snapshot = await asyncio.to_thread(self._load)
        batcher: Batcher[_Job, tuple[QueryHits, ...]] = Batcher(
            lambda jobs: self._run(searcher, jobs),
            name="retriever",
            max_items=self._limits.max_batch_queries,
            max_waiting=self._max_waiting,
            max_cost=self._limits.max_batch_queries,
            cost=lambda job: len(job.lookup.queries),
        )
        self._loaded = _Loaded(searcher, {snapshot.version: snapshot}, batcher)
        self._version.set(snapshot.version)
        self._passages.set(snapshot.rows.size)
        log.info("loaded", extra=fields(**vars(self.info())))

    async def stop(self) -> None:
        """Finish what is queued."""
        if self._loaded is not None:
            await self._loaded.batcher.close()

    async def retrieve(self, queries: Sequence[Query], k: int, knowledge_version: int = 0) -> Retrieval:
        """The k passages nearest to each query, from one version (0: the newest loaded).

        Raises:
            InvalidInputError: k or a query is wrong; the field is named.
            NotFoundError: that version is not loaded.
            ResourceExhaustedError: too many requests wait.
            UnavailableError: loading or stopping.
        """
        loaded = self._require_loaded()
        snapshot = self._snapshot(loaded, knowledge_version)
        check_k(k, snapshot.rows.size, self._limits)
        check_queries(queries, snapshot.index.dimension, self._limits)
        clock = self._metrics.clock()
        results = await loaded.batcher.submit(_Job(Lookup(tuple(queries), k, snapshot), clock))
        return Retrieval(results, snapshot.version, clock.timings())

    def info(self) -> RetrieverInfo:
        """What is loaded. Raises UnavailableError while loading."""
        loaded = self._require_loaded()
        return RetrieverInfo(
            knowledge_version=loaded.newest.version,
            passages=loaded.newest.rows.size,
            dimension=loaded.newest.index.dimension,
            index_factory=self._options.index.factory,
            device=loaded.searcher.encoder.device,
            score_scale=loaded.searcher.score_scale,
            max_k=self._limits.max_k,
            max_batch_queries=self._limits.max_batch_queries,
        )

    def _load(self) -> tuple[Searcher, Snapshot]:
        searcher = load_searcher(self._model, self._options)
        dimension = searcher.encoder.config.dim
        snapshot = load_snapshot(self._model, self._knowledge, self._options, dimension)
        # The first request shall not be the one that waits for what libraries set up when first used.
        searcher.run([Lookup((Query("warm-up"),), 1, snapshot)], lambda _stage, _seconds: None)
        return searcher, snapshot

    @staticmethod
    def _run(searcher: Searcher, jobs: Sequence[_Job]) -> list[tuple[QueryHits, ...]]:
        """One batch, in the batcher's thread; each of its requests took the time that the batch took."""
        started = time.monotonic()
        for job in jobs:
            job.clock.add("queue", started - job.since)  # until the work begins, the hop to this thread included

        def add_time(stage: str, seconds: float) -> None:
            for job in jobs:
                job.clock.add(stage, seconds)

        return searcher.run([job.lookup for job in jobs], add_time)

    def _require_loaded(self) -> _Loaded:
        if self._loaded is None:
            raise UnavailableError("the retriever is loading")
        return self._loaded

    @staticmethod
    def _snapshot(loaded: _Loaded, version: int) -> Snapshot:
        if version == 0:
            return loaded.newest
        if version not in loaded.snapshots:
            known = ", ".join(map(str, sorted(loaded.snapshots)))
            raise NotFoundError(
                f"knowledge_version {version} is not loaded; loaded: {known} (0 means the newest)",
                field="knowledge_version",
            )
        return loaded.snapshots[version]
