"""The retriever's own metrics; calls and stages are counted by `ragserve.serving.metrics`."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import Histogram

from ragserve.serving.metrics import Metrics
from retriever_svc.live.snapshot import Snapshot

BATCH_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


class RetrieverMetrics:
    """What an operator sees of queue, batches and knowledge base."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._queue_depth = metrics.gauge("ragserve_queue_depth", "Requests that wait for a batch.")
        self.batch_queries = self._histogram("ragserve_batch_queries", "Queries in one batch.")
        self.batch_tokens = self._histogram("ragserve_batch_tokens", "Tokens of the texts encoded in one batch.")
        self._version = metrics.gauge("ragserve_knowledge_version", "Version of the knowledge base that answers.")
        self._passages = metrics.gauge("ragserve_knowledge_passages", "Passages in that version.")
        self._delta = metrics.gauge("ragserve_knowledge_delta_passages", "Passages searched beside the base index.")
        self._dead = metrics.gauge("ragserve_knowledge_dead_rows", "Rows of the base index deleted or replaced since.")
        self._loaded = metrics.gauge("ragserve_knowledge_loaded_versions", "Versions that a request may pin.")
        self.lag = metrics.gauge("ragserve_knowledge_lag_versions", "Newer versions that are committed.")
        self.load_failures = metrics.counter(
            "ragserve_knowledge_load_failures_total", "Versions that could not be loaded, or not be indexed."
        )
        self.truncated_queries = metrics.counter(
            "ragserve_truncated_queries_total", "Queries longer than the query encoder reads."
        )
        self.truncated_passages = metrics.counter(
            "ragserve_truncated_passages_total", "Passages of upserts longer than the passage encoder reads."
        )
        self._swap = metrics.stage("index_swap")  # there from the start, at none
        self.commits = metrics.counter("ragserve_commits_total", "Commits made here.", ("operation",))

    def watch_queue(self, depth: Callable[[], int]) -> None:
        """Ask how many requests wait whenever the metrics are read."""
        self._queue_depth.set_function(depth)

    def swapped(self, seconds: float) -> None:
        """A rebuilt index took this long to put in place."""
        self._swap.observe(seconds)

    def answering(self, newest: Snapshot, n_loaded: int) -> None:
        """From now on this version answers."""
        self._version.set(newest.version)
        self._passages.set(newest.size)
        self._delta.set(newest.overlay.size)
        self._dead.set(newest.dead)
        self._loaded.set(n_loaded)

    def _histogram(self, name: str, doc: str) -> Histogram:
        return Histogram(name, doc, buckets=BATCH_BUCKETS, registry=self._metrics.registry)
