"""The generator's own metrics: what is open, how documents are encoded, and what the encoder cache saves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from generator_svc.scheduler import Scheduler
from ragserve.serving.metrics import Metrics, StageClock

BUCKETS_DOCUMENTS = (1, 2, 3, 5, 8, 12, 16, 24, 32, 64, 128)


class GeneratorMetrics:
    """Registered once, in the registry of the service."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        gauge, counter = metrics.gauge, metrics.counter
        self._sessions = gauge("ragserve_decode_sessions", "Decode sessions open.")
        self._cache = gauge("ragserve_cache_bytes", "Bytes of key and value cache in use.")
        self._kept = gauge("ragserve_encoder_cache_bytes", "Bytes of encoded documents that no session holds.")
        self._hits = counter("ragserve_encoder_cache_hits_total", "Documents of sessions that others had encoded.")
        self._misses = counter("ragserve_encoder_cache_misses_total", "Documents of sessions that were to be encoded.")
        self._truncated = counter(
            "ragserve_truncated_documents_total", "Documents of sessions that the generator does not read to their end."
        )
        self._tokens = counter("ragserve_prefill_tokens_total", "Context tokens encoded.")
        self._padded = counter(
            "ragserve_prefill_padded_tokens_total", "Token positions that encoding computed for nothing."
        )
        self._documents = metrics.histogram(
            "ragserve_prefill_documents", "Documents encoded in one pass.", BUCKETS_DOCUMENTS
        )

    def watch(self, scheduler: Scheduler) -> None:
        """Show what this scheduler holds."""
        self._sessions.set_function(lambda: scheduler.n_sessions)
        self._cache.set_function(lambda: scheduler.used_bytes)
        self._kept.set_function(lambda: scheduler.documents.kept_bytes)

    def spent(self, seconds: Mapping[str, float]) -> None:
        """The stages of one request."""
        for stage, spent in seconds.items():
            self._metrics.observe_stage(stage, spent)

    def clock(self) -> StageClock:
        """A clock for one request."""
        return self._metrics.clock()

    def opened(self, hits: int, misses: int) -> None:
        """A session was admitted with so many documents that are, and are not, encoded for others."""
        self._hits.inc(hits)
        self._misses.inc(misses)

    def truncated(self, documents: int) -> None:
        """So many documents of a session were cut."""
        self._truncated.inc(documents)

    def encoded(self, n_tokens: Sequence[int], positions: int) -> None:
        """Documents of these lengths were encoded in a pass over so many token positions."""
        self._tokens.inc(sum(n_tokens))
        self._padded.inc(positions - sum(n_tokens))
        self._documents.observe(len(n_tokens))
