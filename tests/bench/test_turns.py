"""How sides are measured in turns: every side gets every query, in batches that fit it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from bench.retrieval_report import target
from bench.sides import in_flight_map
from bench.turns import REPEATS, Load, Measured, one_round

QUERIES = [f"question {number}" for number in range(40)]


class Recorder:
    """A side that answers with what it was asked and notes the sizes of its batches."""

    def __init__(self, name: str, remote: bool) -> None:
        self.name, self.remote = name, remote
        self.sizes: list[int] = []

    def one(self, query: Any) -> Any:
        self.sizes.append(1)
        return [[query]]

    def many(self, batches: Sequence[Sequence[Any]], in_flight: int) -> list[Any]:
        self.sizes += map(len, batches)
        return [[[query] for query in batch] for batch in batches]

    def ids(self, answer: Any) -> Any:
        return answer

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("load", "remote", "called"),
    [
        (Load("single", latency=True), [1] * 40, [1] * 40),
        (Load("many clients", 1, 16), [1] * 40, [16, 16, 8]),
        (Load("batches", 16, 2), [16, 16, 8], [16, 16, 8]),
    ],
)
def test_all_sides_get_all_queries(load: Load, remote: list[int], called: list[int]) -> None:
    sides = [Recorder("ragserve", remote=True), Recorder("in-process", remote=False)]
    measured = Measured(load, "text")
    for turn in range(2):
        one_round(measured, sides, QUERIES, turn)
    times = 2 if load.latency else 2 * REPEATS
    assert [side.sizes for side in sides] == [remote * times, called * times]
    assert measured.found["ragserve"] == [[query] for query in QUERIES]
    assert measured.same("ragserve", "in-process")
    assert all(len(values) == 2 and min(values) > 0 for values in measured.values.values())


def test_clients_are_in_flight_together_and_answers_keep_their_order() -> None:
    running, most = 0, 0

    async def call(batch: Sequence[Any]) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return batch

    batches = [[query] for query in QUERIES]
    assert asyncio.run(in_flight_map(call, batches, 7)) == batches
    assert most == 7


def test_targets_are_judged_by_their_own_measure() -> None:
    latency = Measured(Load("single", latency=True), "text", {"ragserve": [0.0101], "in-process": [0.0080]})
    assert target(latency, "in-process").endswith("NOT MET")
    latency.values["ragserve"] = [0.0099]
    assert target(latency, "in-process").endswith(", met")
    load = Measured(Load("batches", 16, 2), "text", {"ragserve": [86.0], "in-process": [100.0], "bm25s": [1e6]})
    assert target(load, "in-process").endswith(", met")
    assert target(load, "bm25s") == ""
    load.values["ragserve"] = [84.0]
    assert target(load, "in-process").endswith("NOT MET")
