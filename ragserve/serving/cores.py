"""How many threads a service computes with: one rule for all of them."""

from __future__ import annotations

import math
import os
from pathlib import Path

CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
# How often libgomp's threads look for work before they sleep: half a millisecond, as long as what lies between two
# parallel regions of one pass. Its own 300,000 are 17 ms, and the thread that waits so for the next step holds a core
# while this service, its client and its neighbours need it.
SPINS = 8_000


def thread_count(threads: int) -> int:
    """Threads that a setting means: itself; for 0 OMP_NUM_THREADS where it is set, else every core allowed."""
    return threads or _environment_threads() or allowed_cores()


def allowed_cores(quota_file: Path = CGROUP_QUOTA) -> int:
    """Cores this process may use: those it may be scheduled on, within its container's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = quota_file.read_text(encoding="ascii").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no quota: no such file, or "max"
        return cores


def spin_briefly() -> None:
    """Bounds how long OpenMP's threads wait awake, unless the environment says so; before torch is loaded."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(SPINS))


def _environment_threads() -> int:
    """OMP_NUM_THREADS, of a list for nested regions the first; 0 where it is unset or no number."""
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(first) if first.isascii() and first.isdigit() else 0
