"""What the kernel says of a process, and the tables of the memory benchmark."""

from __future__ import annotations

import subprocess
import sys
from subprocess import PIPE

import pytest

from bench.memory import Held, Left, held_table, left_table
from bench.proc import memory, status_bytes

STATUS = """Name:\tpython
VmPeak:\t 9000000 kB
VmHWM:\t 1296000 kB
VmRSS:\t 1200000 kB
RssAnon:\t  900000 kB
"""
CHILD = """
print(flush=True)
input()
block = b"x" * 64_000_000
print(flush=True)
input()
"""


def test_figures_are_bytes() -> None:
    assert status_bytes(STATUS, "VmHWM") == 1_296_000 * 1024
    assert status_bytes(STATUS, "VmRSS") == 1_200_000 * 1024
    with pytest.raises(KeyError):
        status_bytes(STATUS, "RssShmem")
    with pytest.raises(KeyError):
        status_bytes("Name:\tpython\nState:\tZ (zombie)\n", "VmRSS")


def test_a_block_that_is_in_use_is_counted() -> None:
    """In a process that does nothing else: one of tests may give memory back meanwhile."""
    with subprocess.Popen([sys.executable, "-c", CHILD], stdin=PIPE, stdout=PIPE, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        before = memory("VmRSS", child.pid)
        print(file=child.stdin, flush=True)
        child.stdout.readline()
        assert memory("VmRSS", child.pid) - before == pytest.approx(64_000_000, rel=0.1)
        assert memory("VmHWM", child.pid) >= memory("VmRSS", child.pid) - 1_000_000
        assert 0 < memory("RssAnon", child.pid) <= memory("VmRSS", child.pid)
        print(file=child.stdin, flush=True)


def test_a_sessions_bytes_are_above_those_of_the_loaded_process() -> None:
    held = [Held("int8", 0, 800_000_000, 900_000_000, 0.0), Held("int8", 4, 1_000_000_000, 1_500_000_000, 180e6)]
    text = held_table(held, "bart-large")
    assert "| int8 | goal ≤ 1200 met | 0 | 800 | 900 |  |  |" in text
    assert "| int8 | goal ≤ 1440 NOT met | 4 | 1000 | 1500 | 50.0 | 45.0 |" in text
    assert "goal" not in held_table(held, "small")


def test_growth_is_judged_over_the_last_ten_thousand() -> None:
    left = [Left("int8", 1_000 * n, 300_000_000 + 1_000_000 * min(n, 12)) for n in range(1, 21)]
    assert "int8, 20,000 sessions over 10,000: +2.0 MB, goal ≤ 4 met." in left_table(left)
    left[-1] = Left("int8", 20_000, 315_000_000)
    assert "int8, 20,000 sessions over 10,000: +5.0 MB, goal ≤ 4 NOT met." in left_table(left)
