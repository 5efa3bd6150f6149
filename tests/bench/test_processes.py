"""What benchmarks read from the services they started."""

from __future__ import annotations

import socket

import pytest

from bench.processes import PORTS, free_ports, metric_total

PAGE = """# HELP ragserve_widenings_total Rows of a step.
ragserve_widenings_total{reason="greedy"} 3.0
ragserve_widenings_total{reason="beam"} 14.0
ragserve_widenings_total_created 99.0
ragserve_cache_bytes 6.144e+07
"""


@pytest.mark.parametrize(
    ("name", "value"), [("ragserve_widenings_total", 17.0), ("ragserve_cache_bytes", 61_440_000.0), ("absent", 0.0)]
)
def test_samples_of_one_name_are_added_up(name: str, value: float) -> None:
    assert metric_total(PAGE, name) == value


def test_free_ports_are_free_and_no_outgoing_connections() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_ports(1)[0]))
        ports = free_ports(50)
        assert len({*ports, taken.getsockname()[1]}) == 51
    assert set(ports) <= set(PORTS)
    for port in ports:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
