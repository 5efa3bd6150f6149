"""Where the model runs, and with how many threads."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

from generator_svc.options import Device
from ragserve.errors import FailedPreconditionError

CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def choose_device(wanted: Device) -> torch.device:
    """The device to run on.

    Raises:
        FailedPreconditionError: CUDA is asked for and absent.
    """
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise FailedPreconditionError(
            "device is cuda, but torch finds no CUDA device here: use cpu or auto", field="device"
        )
    return torch.device(wanted)


def use_threads(threads: int) -> None:
    """Threads of one pass; 0 means OMP_NUM_THREADS where it is set, else every core this process may use."""
    if threads == 0 and os.environ.get("OMP_NUM_THREADS"):
        return
    wanted = threads or allowed_cores()
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)


def allowed_cores(quota_file: Path = CGROUP_QUOTA) -> int:
    """Cores this process may use: those it may be scheduled on, within its container's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = quota_file.read_text(encoding="ascii").split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no quota: no such file, or "max"
        return cores
