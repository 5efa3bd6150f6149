"""Where the model runs, and with how many threads."""

from __future__ import annotations

import os

import torch

from generator_svc.options import Device
from ragserve.errors import FailedPreconditionError


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
    wanted = threads or len(os.sched_getaffinity(0))
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)
