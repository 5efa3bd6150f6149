from __future__ import annotations

import threading
import time

import pytest

from ragserve.serving.convert import timings_from_proto, timings_to_proto
from ragserve.serving.metrics import BUCKETS_SECONDS, Metrics, StageClock, StageTiming


def test_a_clock_adds_up_stages_in_their_order() -> None:
    clock = StageClock()
    clock.add("queue", 0.5)
    with clock.measure("search"):
        time.sleep(0.01)
    clock.add("queue", 0.25, count=3)
    queue, search = clock.timings()
    assert queue == StageTiming("queue", 0.75, 4)
    assert (search.stage, search.count) == ("search", 1)
    assert 0.009 < search.seconds < 5


def test_a_stage_that_raises_is_timed_too() -> None:
    clock = StageClock()
    with pytest.raises(ZeroDivisionError), clock.measure("search"):
        _ = 1 / 0
    assert clock.timings()[0].count == 1


def test_a_clock_of_metrics_observes_histograms() -> None:
    metrics = Metrics()
    clock = metrics.clock()
    clock.add("prefill", 0.2)
    metrics.clock().add("prefill", 0.3)
    sample = metrics.registry.get_sample_value
    assert sample("ragserve_prefill_seconds_count") == 2
    assert sample("ragserve_prefill_seconds_sum") == pytest.approx(0.5)
    assert sample("ragserve_prefill_seconds_bucket", {"le": "0.25"}) == 1
    assert clock.timings() == (StageTiming("prefill", 0.2, 1),)


def test_a_late_clock_observes_once_and_when_told() -> None:
    metrics = Metrics()
    clock = metrics.late_clock()
    clock.add("search", 0.5)
    clock.add("search", 0.25)
    count = "ragserve_search_seconds_count"
    assert metrics.registry.get_sample_value(count) is None
    assert clock.timings() == (StageTiming("search", 0.75, 2),)
    clock.tell()
    clock.tell()
    assert metrics.registry.get_sample_value(count) == 2
    assert metrics.registry.get_sample_value("ragserve_search_seconds_sum") == 0.75


def test_a_stage_is_made_once() -> None:
    metrics = Metrics()
    assert metrics.stage("search") is metrics.stage("search")
    assert (BUCKETS_SECONDS[0], BUCKETS_SECONDS[-1]) == (1e-4, 60.0)


def test_counters_gauges_and_calls() -> None:
    metrics = Metrics()
    metrics.counter("ragserve_widenings_total", "Widenings.", ["mode"]).labels("token").inc(2)
    metrics.gauge("ragserve_sessions", "Sessions.").set(3)
    metrics.observe_call("ragserve.v1.RagService", "Generate", "OK", 0.5)
    sample = metrics.registry.get_sample_value
    assert sample("ragserve_widenings_total", {"mode": "token"}) == 2
    assert sample("ragserve_sessions") == 3
    labels = {"grpc_service": "ragserve.v1.RagService", "grpc_method": "Generate"}
    assert sample("grpc_server_handled_total", {**labels, "grpc_code": "OK"}) == 1
    assert sample("grpc_server_handling_seconds_sum", labels) == 0.5


def test_clocks_are_safe_among_threads() -> None:
    clock = Metrics().clock()

    def count() -> None:
        for _ in range(1000):
            clock.add("step", 1.0)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert clock.timings() == (StageTiming("step", 4000.0, 4000),)


def test_timings_survive_the_wire() -> None:
    timings = (StageTiming("queue", 0.125, 1), StageTiming("decode_step", 1.5, 20))
    assert timings_from_proto(timings_to_proto(timings)) == timings
