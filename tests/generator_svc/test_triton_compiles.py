"""The Triton kernels go through Triton's compiler for the GPUs that they are meant for; that needs no GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from generator_svc.gpu.layout import Bucket
from generator_svc.gpu.static_step import StaticStep
from generator_svc.models.base import Shape
from tests.generator_svc.gpu_cases import shape_of

pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from generator_svc.gpu.cuda import TritonKernels

pytestmark = pytest.mark.long
HOPPER = GPUTarget("cuda", 90, 32)
SHARED_MEMORY = 232_448  # bytes that a block may have there
KERNELS = {"_keep_kernel", "_own_kernel", "_documents_kernel", "_norms_kernel", "_blocks_kernel", "_merge_kernel"}


class Driver:
    """Says what Triton asks of a device."""

    utils = SimpleNamespace(get_device_properties=lambda _device: {"max_shared_mem": SHARED_MEMORY})

    def get_current_target(self) -> GPUTarget:
        return HOPPER

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, _device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Counter[str]:
    """How often each kernel was compiled: in place of a launch it goes to the compiler with the same arguments."""
    counts: Counter[str] = Counter()

    def compile_only(kernel: Any, grid: Any) -> Callable[..., None]:
        def launch(*args: Any, **options: Any) -> None:
            made = JITFunction.run(kernel, *args, grid=grid, warmup=True, **options)
            assert made.asm["cubin"]
            assert made.metadata.shared <= SHARED_MEMORY
            counts[kernel.__name__] += 1

        return launch

    monkeypatch.setattr(JITFunction, "__getitem__", compile_only)
    monkeypatch.setattr(driver, "_active", Driver())
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    return counts


def static_step(shape: Shape, rows: int) -> StaticStep:
    cache = SimpleNamespace(device=torch.device("cpu"), layers=[torch.zeros(8, 2 * shape.inner)])
    return StaticStep(None, cache, None, Bucket(rows, 32, 16))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("heads", "dim"), [(16, 64), (4, 12)])
def test_every_kernel_compiles(compiled: Counter[str], dtype: torch.dtype, heads: int, dim: int) -> None:
    shape, kernels = shape_of(heads, dim, dtype), TritonKernels()
    for rows in (1, 2, 64):  # Triton compiles for arguments of 1, and for multiples of 16, anew
        step = static_step(shape, rows)
        qkv, slots = torch.zeros(rows, 3 * shape.inner, dtype=dtype), torch.zeros(8, 2 * shape.inner, dtype=dtype)
        for bias in (None, torch.zeros(32, heads, dtype=dtype)):
            kernels.own(qkv, slots, step._paths, bias, shape)
        for layer in (0, 1, 16):
            kernels.documents(qkv[:, : shape.inner].contiguous(), layer, step._tiles, shape)
        for vocab in (50_265, 400):
            kernels.select(torch.zeros(rows, vocab), step._selection, step._selected)
    assert set(compiled) == KERNELS
