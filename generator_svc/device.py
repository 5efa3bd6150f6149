"""Where the model runs, and with how many threads."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from generator_svc.models.numerics import NUMERICS
from generator_svc.models.precision import Precision
from generator_svc.options import Device
from ragserve.errors import FailedPreconditionError
from ragserve.serving.cores import thread_count


def choose_device(wanted: Device, precision: Precision = "float32") -> torch.device:
    """The device to run on.

    Raises:
        FailedPreconditionError: CUDA is asked for and absent, or for a precision that only a CPU has.
    """
    fits = not NUMERICS[precision].quantized
    if wanted == "auto":
        return torch.device("cuda" if fits and torch.cuda.is_available() else "cpu")
    if wanted == "cuda" and not fits:
        raise FailedPreconditionError(
            f"precision {precision} runs on cpu only: use bfloat16 or float16 on cuda", field="precision"
        )
    if wanted == "cuda" and not torch.cuda.is_available():
        raise FailedPreconditionError(
            "device is cuda, but torch finds no CUDA device here: use cpu or auto", field="device"
        )
    return torch.device(wanted)


@dataclass(frozen=True)
class PassSize:
    """How much one pass holds, so that nobody waits long for the next, and the device is used well."""

    step_rows: int
    prefill_tokens: int


# The time of a pass on a CPU grows with every row, so that more of them make a pass longer and hardly anything faster.
PASS_SIZES = {"cpu": PassSize(16, 256), "cuda": PassSize(1_000_000, 8192)}


def pass_size(device: torch.device, step_rows: int, prefill_tokens: int) -> PassSize:
    """As asked for, and where that is 0, as the device has it best."""
    best = PASS_SIZES[device.type]
    return PassSize(step_rows or best.step_rows, prefill_tokens or best.prefill_tokens)


def use_threads(threads: int) -> None:
    """Threads of one pass; see `thread_count` for 0."""
    wanted = thread_count(threads)
    if torch.get_num_threads() != wanted:
        torch.set_num_threads(wanted)
