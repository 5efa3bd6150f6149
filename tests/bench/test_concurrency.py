"""Points and verdicts of the concurrency benchmark."""

from __future__ import annotations

import pytest

from bench.concurrency import Point, latency_table, throughput_table
from bench.report import verdict


@pytest.mark.parametrize(
    ("value", "most", "said"),
    [
        (1.9, False, "goal ≥ 1.8 met"),
        (1.5, False, "goal ≥ 1.8 NOT met, required ≥ 1.3 met"),
        (1.2, False, "goal ≥ 1.8 NOT met, required ≥ 1.3 NOT met"),
        (1.2, True, "goal ≤ 1.8 met"),
        (1.9, True, "goal ≤ 1.8 NOT met, required ≤ 1.3 NOT met"),
    ],
)
def test_verdicts(value: float, most: bool, said: str) -> None:
    assert verdict(value, 1.8, 1.3, most=most) == said


def test_throughput_is_of_all_clients_together() -> None:
    one, many = Point("int8", "answers", 1, 8.0, [2.0] * 4), Point("int8", "answers", 16, 32.0, [16.0] * 32)
    text = throughput_table([one, many])
    assert "| int8 | 16 | 32 | 1.000 | 2.00× | 16.00 | 16.00 |" in text
    assert "16 clients over one: 2.00×, goal ≥ 1.8 met" in text
    assert "clients^0.75" in text


def test_latency_is_judged_by_the_p99() -> None:
    alone = Point("int8", "alone", 1, 2.0, [0.1] * 99 + [0.2])
    loaded = Point("int8", "beside 16 long ones", 1, 2.0, [0.3] * 99 + [0.8])
    text = latency_table([alone, loaded])
    assert "| int8 | beside 16 long ones | 100 | 300.0 | 800.0 | 3.00× | 4.00× |" in text
    assert "4.00×, goal ≤ 3 NOT met, required ≤ 5 met" in text
