"""Measuring several sides in turns, so that what else the machine does falls on all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.fit import quantile
from bench.sides import Asked, Found, Side

BLOCK = 16  # single queries of one side before the next one's turn
REPEATS = 4  # of all queries under a load of many: in one alone, its beginning and end would be a tenth of the time
PAUSE_SECONDS = 0.02  # at a change of sides: lets the other's threads fall asleep


@dataclass(frozen=True)
class Load:
    """How queries come: `batch` in one request, `in_flight` requests at a time. Latency: one query after the other."""

    name: str
    batch: int = 1
    in_flight: int = 1
    latency: bool = False

    @property
    def called_with(self) -> int:
        """Queries in one call of a side that is called in-process: as many as this load lets a service join."""
        return self.batch * self.in_flight if self.batch == 1 else self.batch


@dataclass
class Measured:
    """A load on the same queries for several sides: seconds (latency: median of a round) or queries a second."""

    load: Load
    queries: str  # text or vectors
    values: dict[str, list[float]] = field(default_factory=dict)  # by side, one for each round
    p99: dict[str, list[float]] = field(default_factory=dict)
    found: dict[str, Found] = field(default_factory=dict)

    def median(self, side: str) -> float:
        """The median of the rounds."""
        return statistics.median(self.values[side])

    def overlap(self, side: str, other: str) -> float:
        """Which part of the passages that one side found the other found too, 0 to 1."""
        pairs = list(zip(self.found[side], self.found[other], strict=True))
        return sum(len(set(ours) & set(theirs)) for ours, theirs in pairs) / sum(len(ours) for ours, _ in pairs)

    def same(self, side: str, other: str) -> bool:
        """Whether both found the same passages in the same order for every query."""
        return self.found[side] == self.found[other]


def chunks(queries: Sequence[Asked], size: int) -> list[Sequence[Asked]]:
    """The queries in their order, `size` at a time."""
    return [queries[start : start + size] for start in range(0, len(queries), size)]


def rotated(sides: Sequence[Side], turn: int) -> Iterator[Side]:
    """The sides, beginning with another one each turn."""
    for number in range(len(sides)):
        time.sleep(PAUSE_SECONDS)
        yield sides[(number + turn) % len(sides)]


def one_round(measured: Measured, sides: Sequence[Side], queries: Sequence[Asked], turn: int) -> None:
    """Every side answers every query once."""
    measure = latency_round if measured.load.latency else throughput_round
    answers = measure(measured, sides, queries, turn)
    for side in sides:
        if side.name not in measured.found:
            measured.found[side.name] = [row for answer in answers[side.name] for row in side.ids(answer)]


def latency_round(
    measured: Measured, sides: Sequence[Side], queries: Sequence[Asked], turn: int
) -> dict[str, list[Any]]:
    """One query at a time, the sides changing every few of them."""
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    answers: dict[str, list[Any]] = {side.name: [] for side in sides}
    for number, block in enumerate(chunks(queries, BLOCK)):
        for side in rotated(sides, turn + number):
            for query in block:
                begin = time.perf_counter()
                answer = side.one(query)
                seconds[side.name].append(time.perf_counter() - begin)
                answers[side.name].append(answer)
    for name, values in seconds.items():
        measured.values.setdefault(name, []).append(statistics.median(values))
        measured.p99.setdefault(name, []).append(quantile(values, 0.99))
    return answers


def throughput_round(
    measured: Measured, sides: Sequence[Side], queries: Sequence[Asked], turn: int
) -> dict[str, list[Any]]:
    """All queries several times, as fast as the load lets a side go; the answers of the first time."""
    answers: dict[str, list[Any]] = {}
    for side in rotated(sides, turn):
        batches = chunks(queries, measured.load.batch if side.remote else measured.load.called_with)
        begin = time.perf_counter()
        answers[side.name] = side.many(list(batches) * REPEATS, measured.load.in_flight)[: len(batches)]
        taken = time.perf_counter() - begin
        measured.values.setdefault(side.name, []).append(REPEATS * len(queries) / taken)
    return answers
