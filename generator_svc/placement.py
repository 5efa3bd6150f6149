"""Puts a model on its device: the runner, and how its steps are computed there."""

from __future__ import annotations

from collections.abc import Callable

import torch

from generator_svc.models.base import Seq2SeqModel
from generator_svc.runner import Runner
from generator_svc.slots import INITIAL_SLOTS
from generator_svc.steps import PlainStepper, Stepper

RESERVED_BYTES = 512 * 2**20  # of cache on a GPU: graphs are captured again when the cache grows beyond


def _on_cpu(model: Seq2SeqModel, device: torch.device, cache_bytes: int) -> tuple[Runner, Stepper]:
    runner = Runner(model, device)
    return runner, PlainStepper(runner)


def _on_gpu(model: Seq2SeqModel, device: torch.device, cache_bytes: int) -> tuple[Runner, Stepper]:
    from generator_svc.gpu.cuda import GraphCapture, TritonKernels  # noqa: PLC0415
    from generator_svc.gpu.stepper import StaticStepper  # noqa: PLC0415

    # cuDNN's attention, which torch prefers on Hopper, is built anew for every shape: it stalls the worker each time.
    torch.backends.cuda.enable_cudnn_sdp(False)
    reserved = min(RESERVED_BYTES, cache_bytes) // model.shape.bytes_per_slot
    runner = Runner(model, device, max(INITIAL_SLOTS, reserved))
    return runner, StaticStepper(model, runner.cache, TritonKernels(), PlainStepper(runner), GraphCapture())


ON_DEVICE: dict[str, Callable[[Seq2SeqModel, torch.device, int], tuple[Runner, Stepper]]] = {
    "cpu": _on_cpu,
    "cuda": _on_gpu,
}


def build_runner(model: Seq2SeqModel, device: torch.device, cache_bytes: int) -> tuple[Runner, Stepper]:
    """The runner of a model on a device, and its stepper; `cache_bytes` is the most that keys and values may take."""
    return ON_DEVICE[device.type](model, device, cache_bytes)
