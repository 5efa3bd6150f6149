"""The retriever without its transport: checks requests, joins them into batches and answers from a loaded version."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

from ragserve.checkpoint import load_manifest, query_encoder_id
from ragserve.errors import DataLossError, NotFoundError, RagserveError, UnavailableError
from ragserve.files import file_error, is_about_access
from ragserve.reasons import reason_of
from ragserve.serving.batching import Batcher, BatchLimits, Size
from ragserve.serving.cores import thread_count
from ragserve.serving.logs import fields
from ragserve.serving.memory import keep_memory_low
from ragserve.serving.metrics import Metrics, StageClock, StageTiming
from ragserve.serving.private_paths import PrivatePath
from retriever_svc.editing import EditOptions, Editor
from retriever_svc.encoder import BATCHES_AT_A_TIME, TextEncoder
from retriever_svc.kinds import DEFAULT_OPTIONS, Lookup, LookupOptions
from retriever_svc.knowledge import passage_encoder_directory, reading
from retriever_svc.live.follower import Follower, FollowEvents, FollowOptions
from retriever_svc.live.snapshot import Snapshot
from retriever_svc.live.writer import KnowledgeWriter
from retriever_svc.loading import KnowledgeSource, RetrievalOptions, load_passage_encoder, load_searcher
from retriever_svc.manifests import is_panic
from retriever_svc.query_cache import QueryCache
from retriever_svc.requests import RequestLimits, check_k, check_options, check_queries, fitting_k, require_passages
from retriever_svc.searcher import Searcher
from retriever_svc.splitting import Cut, SplitOptions
from retriever_svc.telemetry import RetrieverMetrics
from retriever_svc.types import Query, QueryHits, unread_queries

log = logging.getLogger(__name__)
DEFAULT_REFRESH_SECONDS = 2.0
# Of padding in a batch, where there are several: what costs as much as one pass more (`encoder.PASS_TOKENS`), and some
# for the encoder to choose from. It divides batches by tokens.
PADDING_CHARACTERS = 120


@dataclass(frozen=True)
class Retrieval:
    """Results in the order of the queries, the version that gave them, the stages of the work, and warnings."""

    results: tuple[QueryHits, ...]
    knowledge_version: int
    timings: tuple[StageTiming, ...]
    warnings: tuple[str, ...] = ()
    query_encoder: str = ""  # see `query_encoder_id`


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
    loaded_versions: tuple[int, ...]
    writable: bool
    delta_passages: int
    dead_rows: int


@dataclass(frozen=True)
class EngineOptions:
    """How the engine loads, follows and writes."""

    retrieval: RetrievalOptions = field(default_factory=RetrievalOptions)
    limits: RequestLimits = field(default_factory=RequestLimits)
    follow: FollowOptions = field(default_factory=FollowOptions)
    edit: EditOptions = field(default_factory=EditOptions)
    lookup: LookupOptions = DEFAULT_OPTIONS  # where a request does not say
    max_waiting: int = 256
    query_cache_entries: int = 0
    refresh_seconds: float = DEFAULT_REFRESH_SECONDS


@dataclass(frozen=True)
class _Job:
    """A request in the queue since a moment (monotonic seconds), and the clock that its stages are added to."""

    lookup: Lookup
    clock: StageClock
    since: float


@dataclass(frozen=True)
class _Loaded:
    """What start loads."""

    searcher: Searcher
    follower: Follower
    editor: Editor
    batcher: Batcher[_Job, tuple[QueryHits, ...]]
    following: tuple[asyncio.Task[None], ...]


class RetrieverEngine:
    """Answers retrieval requests. `start` before the first request, `stop` after the last."""

    def __init__(self, model: Path, knowledge: Path, *, options: EngineOptions, metrics: Metrics) -> None:
        self._model = model
        self.knowledge = knowledge
        self.private_paths = (
            PrivatePath(model, "model", "the model directory"),
            PrivatePath(knowledge, "knowledge", "the knowledge base"),
        )
        self._options = options
        self.limits = options.limits
        self._clocks = metrics
        self._metrics = RetrieverMetrics(metrics)
        kept = options.query_cache_entries
        self._query_encoder = ""
        self._encoder_warnings: tuple[str, ...] = ()
        self._cache: QueryCache[QueryHits] | None = QueryCache(kept, metrics) if kept else None
        self._parser = ThreadPoolExecutor(1, thread_name_prefix="metadata")  # one, for all that wait for the same
        self._refresher = ThreadPoolExecutor(1, thread_name_prefix="refresh")  # so that callers queue, and may leave
        self._loaded: _Loaded | None = None

    async def start(self) -> None:
        """Load model and knowledge base. Raises what `loading` raises."""
        searcher, follower, editor = await asyncio.to_thread(self._load)
        most = self.limits.max_batch_queries
        lanes = self._lanes(searcher)
        batcher: Batcher[_Job, tuple[QueryHits, ...]] = Batcher(
            lambda jobs: self._run(searcher, jobs),
            name="retriever",
            limits=BatchLimits(most, self._options.max_waiting, max_cost=most, max_padding=PADDING_CHARACTERS),
            size=lambda job: Size(len(job.lookup.queries), job.lookup.characters if lanes > 1 else 0),
            lanes=lanes,
        )
        self._metrics.watch_queue(lambda: batcher.waiting)
        searcher.observe_tokens = self._metrics.batch_tokens.observe
        following = (asyncio.create_task(self._follow(follower)), asyncio.create_task(self._watch_lag(follower)))
        self._loaded = _Loaded(searcher, follower, editor, batcher, following)
        self._observe(follower)
        log.info("loaded", extra=fields(**vars(self.info())))

    async def stop(self) -> None:
        """Finish what is queued."""
        if self._loaded is not None:
            for task in self._loaded.following:
                task.cancel()
            await self._loaded.batcher.close()
            self._loaded.editor.give_up()
            await asyncio.to_thread(self._loaded.follower.close)
            await asyncio.to_thread(self._loaded.editor.close)
        for pool in (self._parser, self._refresher):
            pool.shutdown(wait=False, cancel_futures=True)

    async def retrieve(
        self,
        queries: Sequence[Query],
        k: int,
        knowledge_version: int = 0,
        options: LookupOptions | None = None,
        *,
        allow_fewer: bool = False,
    ) -> Retrieval:
        """The k passages nearest to each query, from one version (0: the newest loaded).

        There are fewer than k where a filter lets fewer through, and where BM25 finds fewer with a word of the query.
        With `allow_fewer`, a k that is too large becomes the largest possible one, with a warning.

        Raises:
            InvalidInputError: k, a query or an option is wrong; the field is named.
            NotFoundError: that version is not loaded.
            FailedPreconditionError: the version holds no passages.
            ResourceExhaustedError: too many requests wait.
            UnavailableError: loading or stopping.
            DataLossError: what a filter or the answer needs cannot be read.
        """
        loaded = self._require_loaded()
        snapshot = self._snapshot(loaded, knowledge_version)
        require_passages(snapshot)
        k, warnings = fitting_k(k, snapshot.size, self.limits) if allow_fewer else (k, ())
        check_k(k, snapshot.size, self.limits)
        check_queries(queries, snapshot.dimension, self.limits)
        options = options or self._options.lookup
        check_options(options, snapshot, queries)
        clock, since = self._clocks.clock(), time.monotonic()
        if options.filter.conditions and not snapshot.filterable:  # before the queue, which others wait in
            await asyncio.get_running_loop().run_in_executor(self._parser, self._read_metadata, snapshot)
        results = await loaded.batcher.submit(_Job(Lookup(tuple(queries), k, snapshot, options), clock, since))
        self._metrics.truncated_queries.inc(sum(one.unread_tokens > 0 for one in results))
        warnings = (*warnings, *unread_queries(results), *self._encoder_warnings)
        return Retrieval(results, snapshot.version, clock.timings(), warnings, self._query_encoder)

    async def refresh(self) -> int:
        """Load what was committed meanwhile; the newest version then. Raises what `KnowledgeSource` raises."""
        follower = self._require_loaded().follower
        newest = await asyncio.get_running_loop().run_in_executor(self._refresher, follower.refresh)
        self._observe(follower)
        return newest.version

    @property
    def default_lookup(self) -> LookupOptions:
        """What is searched, and how, where a request does not say."""
        return self._options.lookup

    @property
    def editor(self) -> Editor:
        """What writes. Raises UnavailableError while loading."""
        return self._require_loaded().editor

    def passages_truncated(self, count: int) -> None:
        """Count passages of an upsert that are longer than the passage encoder reads."""
        self._metrics.truncated_passages.inc(count)

    @property
    def loaded_versions(self) -> tuple[int, ...]:
        """Versions that a request may pin, oldest first. Raises UnavailableError while loading."""
        return tuple(sorted(self._require_loaded().follower.snapshots))

    @property
    def pinned(self) -> bool:
        """Whether one version is served for good."""
        return bool(self._options.retrieval.knowledge_version)

    @property
    def dimension(self) -> int:
        """Width of the vectors. Raises UnavailableError while loading."""
        return self._require_loaded().follower.newest.dimension

    def clock(self) -> StageClock:
        """A clock for the stages of one request."""
        return self._clocks.clock()

    def info(self) -> RetrieverInfo:
        """What is loaded. Raises UnavailableError while loading."""
        loaded = self._require_loaded()
        newest = loaded.follower.newest
        return RetrieverInfo(
            knowledge_version=newest.version,
            passages=newest.size,
            dimension=newest.dimension,
            index_factory=self._options.retrieval.index.factory,
            device=loaded.searcher.encoder.device,
            score_scale=loaded.searcher.scales.dense,
            max_k=self.limits.max_k,
            max_batch_queries=self.limits.max_batch_queries,
            loaded_versions=self.loaded_versions,
            writable=self._options.edit.writable,
            delta_passages=newest.overlay.size,
            dead_rows=newest.dead,
        )

    def _load(self) -> tuple[Searcher, Follower, Editor]:
        keep_memory_low()
        options = self._options.retrieval
        searcher = load_searcher(self._model, options, self._cache)
        manifest = load_manifest(self._model)
        self._query_encoder = query_encoder_id(manifest)
        self._encoder_warnings = manifest.encoder_warnings
        for warning in self._encoder_warnings:
            log.warning(warning)
        source = KnowledgeSource.of_model(self._model, self.knowledge, searcher.encoder.config.dim, options)
        events = FollowEvents(self._metrics.swapped, self._metrics.load_failures.inc)
        follower = Follower(source, self._options.follow, events)
        follower.load()
        # The first request shall not be the one that waits for what libraries set up when first used.
        if follower.newest.size:
            searcher.run([Lookup((Query("warm-up"),), 1, follower.newest)], lambda _stage, _seconds: None)
        else:
            log.warning("the knowledge base holds no passages yet", extra=fields(knowledge=self.knowledge))
        writer = KnowledgeWriter(self.knowledge, source.encoder)
        editor = Editor(writer, follower, self._passage_encoder, self._load_cut, self._options.edit, self._committed)
        return searcher, follower, editor

    def _load_cut(self, split: SplitOptions) -> Cut | None:
        return split.cut(passage_encoder_directory(self._model))

    def _lanes(self, searcher: Searcher) -> int:
        """Batches at a time: two share the encoder's threads better than one can use them.

        While one is searched, fetched and sent the other is encoded, and the short products of a batch of questions
        take little less time with two threads than with one.
        """
        threads = thread_count(self._options.retrieval.threads)
        return BATCHES_AT_A_TIME if searcher.encoder.device == "cpu" and threads > 1 else 1

    def _passage_encoder(self) -> TextEncoder:
        """Runs on one thread, so that queries keep the other cores."""
        return load_passage_encoder(self._model, replace(self._options.retrieval, threads=1))[0]

    def _committed(self, operation: str) -> None:
        self._metrics.commits.labels(operation).inc()
        self._observe(self._require_loaded().follower)

    async def _follow(self, follower: Follower) -> None:
        """Look for new versions, twice in each refresh interval, so that none is found later than that."""
        while True:
            await asyncio.sleep(self._options.refresh_seconds / 2)
            try:
                await asyncio.to_thread(follower.refresh)
            except RagserveError as error:
                self._metrics.load_failures.inc()
                log.error("version not loaded, the last one answers", extra=fields(reason=error.message))  # noqa: TRY400
            except Exception:  # whatever it was: never stop to look
                self._metrics.load_failures.inc()
                log.exception("version not loaded, the last one answers")
            self._observe(follower)

    async def _watch_lag(self, follower: Follower) -> None:
        """Count the versions that are not loaded, as often; beside `_follow`, because loading one may take minutes."""
        while True:
            try:
                self._metrics.lag.set(await asyncio.to_thread(follower.behind))
            except Exception as error:  # the same
                log.warning("newest version not known", extra=fields(reason=error))
            await asyncio.sleep(self._options.refresh_seconds / 2)

    def _read_metadata(self, snapshot: Snapshot) -> None:
        with reading(self.knowledge):
            snapshot.read_metadata()

    def _observe(self, follower: Follower) -> None:
        self._metrics.answering(follower.newest, len(follower.snapshots))

    def _run(self, searcher: Searcher, jobs: Sequence[_Job]) -> list[tuple[QueryHits, ...] | Exception]:
        """One batch, in the batcher's thread; each of its requests took the time that the batch took.

        Where it fails, as for a version whose files are gone, each of its requests is tried alone.
        """
        started = time.monotonic()
        self._metrics.batch_queries.observe(sum(len(job.lookup.queries) for job in jobs))
        for job in jobs:
            job.clock.add("queue", started - job.since)  # until the work begins, the hop to this thread included
        try:
            return [*self._search(searcher, jobs)]
        except Exception as error:
            return [error] if len(jobs) == 1 else [self._search_alone(searcher, job) for job in jobs]

    def _search(self, searcher: Searcher, jobs: Sequence[_Job]) -> list[tuple[QueryHits, ...]]:
        def add_time(stage: str, seconds: float) -> None:
            for job in jobs:
                job.clock.add(stage, seconds)

        try:
            return searcher.run([job.lookup for job in jobs], add_time)
        except BaseException as error:
            if not isinstance(error, OSError) and not is_panic(error):
                raise
            if is_about_access(error):
                raise file_error(error, "read", self.knowledge) from error
            raise DataLossError(f"{self.knowledge} cannot be read: {reason_of(error)}", field="knowledge") from error

    def _search_alone(self, searcher: Searcher, job: _Job) -> tuple[QueryHits, ...] | Exception:
        try:
            return self._search(searcher, [job])[0]
        except Exception as error:
            return error

    def _require_loaded(self) -> _Loaded:
        if self._loaded is None:
            raise UnavailableError("the retriever is loading")
        return self._loaded

    @staticmethod
    def _snapshot(loaded: _Loaded, version: int) -> Snapshot:
        if version == 0:
            return loaded.follower.newest
        snapshots = loaded.follower.snapshots
        if version not in snapshots:
            known = ", ".join(map(str, sorted(snapshots)))
            raise NotFoundError(
                f"knowledge_version {version} is not loaded; loaded: {known} (0 means the newest). The retriever's "
                "setting keep_versions says how many stay loaded; a rollback brings an older one back",
                field="knowledge_version",
            )
        return snapshots[version]
