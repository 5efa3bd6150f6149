"""Prometheus metrics of a service, and the clock that times the stages of one request. Knows no transport."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

from ragserve.files import file_errors

# Upper bounds in seconds, 100 microseconds to one minute.
BUCKETS_SECONDS = (
    *(1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)


@dataclass(frozen=True)
class StageTiming:
    """Wall-clock seconds spent in one stage of a request, summed over `count` runs of it."""

    stage: str
    seconds: float
    count: int = 1


class StageClock:
    """Adds up the stages of one request. May be used from several threads."""

    def __init__(self, observe: Callable[[str, float], None] | None = None) -> None:
        self._observe = observe
        self._totals: dict[str, tuple[float, int]] = {}
        self._lock = threading.Lock()

    def measure(self, stage: str) -> AbstractContextManager[None]:
        """Times the block as one run of the stage, also when it raises."""
        return _Run(self, stage)

    def add(self, stage: str, seconds: float, count: int = 1) -> None:
        """Adds `count` runs that took `seconds` in total; the histogram sees one observation."""
        with self._lock:
            total, runs = self._totals.get(stage, (0.0, 0))
            self._totals[stage] = (total + seconds, runs + count)
        if self._observe is not None:
            self._observe(stage, seconds)

    def timings(self) -> tuple[StageTiming, ...]:
        """The stages so far, in the order in which they first ran."""
        with self._lock:
            return tuple(StageTiming(stage, seconds, count) for stage, (seconds, count) in self._totals.items())


class _Run(AbstractContextManager[None]):
    """One run of a stage; a generator would take several times as long."""

    def __init__(self, clock: StageClock, stage: str) -> None:
        self._clock = clock
        self._stage = stage
        self._started = 0.0

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._clock.add(self._stage, time.monotonic() - self._started)


class LateClock(StageClock):
    """A clock that observes nothing until `tell`: once at the end, not between the stages of a request."""

    def __init__(self, observe: Callable[[str, float], None]) -> None:
        self._late = observe
        self._runs: list[tuple[str, float]] = []
        super().__init__(lambda stage, seconds: self._runs.append((stage, seconds)))

    def tell(self) -> None:
        """Observe all that was added since the last time."""
        runs, self._runs = self._runs, []
        for stage, seconds in runs:
            self._late(stage, seconds)


class Metrics:
    """The metrics of one service, in a registry of their own."""

    def __init__(self) -> None:
        """Raises RagserveError where PROMETHEUS_MULTIPROC_DIR names a directory that cannot be written to."""
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._lock = threading.Lock()
        self._stages: dict[str, Histogram] = {}
        labels = ("grpc_service", "grpc_method")
        with file_errors("write metrics to PROMETHEUS_MULTIPROC_DIR", os.environ.get("PROMETHEUS_MULTIPROC_DIR", "")):
            self._handled = self.counter("grpc_server_handled_total", "Calls finished.", (*labels, "grpc_code"))
            self._handling = Histogram(
                "grpc_server_handling_seconds",
                "Time from a call's arrival to its end.",
                labels,
                buckets=BUCKETS_SECONDS,
                registry=self.registry,
            )
            self.in_flight = self.gauge("ragserve_calls_in_flight", "Calls at work.")
        self._calls: dict[tuple[str, str, str], tuple[Counter, Histogram]] = {}  # labels once looked up

    def stage(self, name: str) -> Histogram:
        """The histogram `ragserve_<name>_seconds`."""
        with self._lock:
            if name not in self._stages:
                self._stages[name] = Histogram(
                    f"ragserve_{name}_seconds",
                    f"Time spent in the stage {name}.",
                    buckets=BUCKETS_SECONDS,
                    registry=self.registry,
                )
            return self._stages[name]

    def counter(self, name: str, doc: str, labels: Sequence[str] = ()) -> Counter:
        """A new counter; `name` ends in `_total`. Labels never hold text or ids."""
        return Counter(name, doc, labels, registry=self.registry)

    def histogram(self, name: str, doc: str, buckets: Sequence[float]) -> Histogram:
        """A new histogram; `buckets` are upper bounds."""
        return Histogram(name, doc, buckets=buckets, registry=self.registry)

    def gauge(self, name: str, doc: str, labels: Sequence[str] = ()) -> Gauge:
        """A new gauge."""
        return Gauge(name, doc, labels, registry=self.registry)

    def clock(self) -> StageClock:
        """A clock for one request whose stages are also observed by the histograms."""
        return StageClock(self.observe_stage)

    def late_clock(self) -> LateClock:
        """The same, but they observe when told."""
        return LateClock(self.observe_stage)

    def observe_call(self, service: str, method: str, code: str, seconds: float) -> None:
        """Counts one finished gRPC call, by the name of its status code."""
        key = (service, method, code)
        if key not in self._calls:
            self._calls[key] = (self._handled.labels(*key), self._handling.labels(service, method))
        handled, handling = self._calls[key]
        handled.inc()
        handling.observe(seconds)

    def observe_stage(self, stage: str, seconds: float) -> None:
        """One run of a stage."""
        self.stage(stage).observe(seconds)
