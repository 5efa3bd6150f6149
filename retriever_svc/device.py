"""Which device the encoder and the index use: set on purpose, never left to a library."""

from __future__ import annotations

from typing import Literal

import faiss
import onnxruntime

from ragserve.errors import FailedPreconditionError

Device = Literal["auto", "cpu", "cuda"]

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"


def onnx_providers(device: Device) -> list[str]:
    """Execution providers for a device, in order of preference.

    Raises:
        FailedPreconditionError: CUDA is asked for and this ONNX Runtime has none.
    """
    if device == "cpu":
        return [CPU_PROVIDER]
    if CUDA_PROVIDER in onnxruntime.get_available_providers():
        return [CUDA_PROVIDER, CPU_PROVIDER]
    if device == "cuda":
        raise no_cuda("ONNX Runtime", "this build of onnxruntime has no CUDA provider (install the 'gpu' extra)")
    return [CPU_PROVIDER]


def faiss_gpus() -> int:
    """The number of GPUs that FAISS can use; 0 for a CPU build."""
    if not hasattr(faiss, "StandardGpuResources"):
        return 0
    return int(faiss.get_num_gpus())


def no_cuda(library: str, reason: str, device: Device = "cuda") -> FailedPreconditionError:
    """The error, or the reason for the log, where CUDA is asked for (or left to `auto`) and absent."""
    asked = f"device is {device!r}, {'but' if device == 'cuda' else 'and'} {library} cannot use CUDA here: {reason}"
    advice = "; use device 'cpu' or 'auto'" if device == "cuda" else ""
    return FailedPreconditionError(asked + advice, field="device")
