"""Where the time of a request goes.

Histograms of this service, `ragserve_<stage>_seconds`:

- `request`: the whole request, as seen here. It is the sum of `retrieve`, `generator`, `marginalize` and `other`.
- `retrieve`, `generator`: each call to the retriever, each exchange on a session of the generator, as seen here.
- `wire`: of each of these calls, what the other service did not report: network, serialization, waking up.
- `marginalize`: each step of the search here: marginals, filters, the choice of tokens.
- `other`: the rest of the request: validation, waiting for this process, opening and closing sessions.
- `time_to_first_token`: from the start of the request to the first token that will not change.

So over any time the sums of the retriever's queue, encode, search and fetch, the generator's queue, prefill,
decode_step, select, score and render, and `wire`, `marginalize` and `other` here add up to `request`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import AbstractContextManager

from ragserve.serving.metrics import Metrics, StageClock, StageTiming

RETRIEVE, GENERATOR, WIRE, MARGINALIZE, OTHER = "retrieve", "generator", "wire", "marginalize", "other"
REQUEST, FIRST_TOKEN = "request", "time_to_first_token"


class Stages:
    """The stages of one request: its own are observed as metrics, the other services' only reported.

    The histograms are told when the request is over, not between two steps of a search.
    """

    def __init__(self, metrics: Metrics) -> None:
        self._own = metrics.late_clock()
        self._theirs = StageClock()
        self._calls: list[tuple[str, float, tuple[StageTiming, ...]]] = []
        self._started = time.monotonic()
        self._open = True
        self.before_first_token = True

    def measure(self, stage: str) -> AbstractContextManager[None]:
        """Times a block of this service."""
        return self._own.measure(stage)

    def called(self, stage: str, seconds: float, reported: Iterable[StageTiming]) -> None:
        """One call to another service took `seconds` here, and said where its time went."""
        self._calls.append((stage, seconds, tuple(reported)))

    def first_token(self) -> None:
        """The first token is final; later calls do nothing."""
        if self.before_first_token:
            self.before_first_token = False
            self._own.add(FIRST_TOKEN, time.monotonic() - self._started)

    def finish(self) -> None:
        """The request is over; later calls do nothing."""
        if not self._open:
            return
        self._open = False
        self._account()
        whole = time.monotonic() - self._started
        parts = sum(t.seconds for t in self._own.timings() if t.stage in (RETRIEVE, GENERATOR, MARGINALIZE))
        self._own.add(OTHER, max(whole - parts, 0.0))
        self._own.add(REQUEST, whole)
        self._own.tell()

    def timings(self) -> tuple[StageTiming, ...]:
        """Stages of all services; those of one name are added up."""
        self._account()
        return self._theirs.timings() + self._own.timings()

    def _account(self) -> None:
        """For the calls so far, which are only noted as they come."""
        calls, self._calls = self._calls, []
        for stage, seconds, reported in calls:
            for timing in reported:
                self._theirs.add(timing.stage, timing.seconds, timing.count)
            self._own.add(stage, seconds)
            self._own.add(WIRE, max(seconds - sum(timing.seconds for timing in reported), 0.0))
