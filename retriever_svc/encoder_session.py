"""An encoder's ONNX graph on a device: which file, which provider, and passes with inputs and outputs bound to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import onnxruntime

from ragserve.checkpoint import IMPORT_AGAIN
from ragserve.errors import FailedPreconditionError
from ragserve.files import exists, require_file
from ragserve.reasons import reason_of
from ragserve.serving.cores import thread_count
from retriever_svc.device import CPU_PROVIDER, CUDA_PROVIDER, Device, no_cuda, onnx_providers
from retriever_svc.types import Float32, Int64

T = TypeVar("T")
Precision = Literal["float32", "float16", "int8"]

INPUT_NAMES = ("input_ids", "attention_mask")
OUTPUT_NAME = "query_vector"
PRECISION_DEVICE: dict[Precision, Device] = {"int8": "cpu", "float16": "cuda"}  # float32 runs on both
PROVIDER_OPTIONS = {CUDA_PROVIDER: {"use_tf32": "0"}}  # TF32 keeps 10 bits of a float32's 23


class EncoderSession:
    """Runs the graph. Safe to call from several threads."""

    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session

    @classmethod
    def load(cls, directory: Path, device: Device, threads: int, precision: Precision) -> EncoderSession:
        """Load the graph of a precision, with `threads` threads inside an operator and no spinning between calls.

        Raises:
            NotFoundError: `model.onnx` is missing.
            FailedPreconditionError: the graph of another precision is missing, a graph cannot be read or has other
                inputs and outputs, CUDA is asked for and absent, or the precision is not the device's.
        """
        path = graph_path(directory, precision)
        providers = onnx_providers(device_for(precision, device))
        if CUDA_PROVIDER in providers:
            onnxruntime.preload_dlls()  # CUDA's libraries that pip installed, which nothing else here loads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = thread_count(threads)
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Idle threads sleep: the generator next door wants the cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        # Weights stored as int8 become float32 once, at load. Left to itself, ONNX Runtime does that in every pass, or
        # multiplies in int8 with activations that it quantizes by the batch.
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        chosen = [(name, PROVIDER_OPTIONS.get(name, {})) for name in providers]
        session = read(path, lambda: onnxruntime.InferenceSession(str(path), options, providers=chosen))
        if "cuda" in (device, PRECISION_DEVICE.get(precision)) and session.get_providers()[0] == CPU_PROVIDER:
            raise no_cuda("ONNX Runtime", "its CUDA provider did not start (driver, CUDA or cuDNN libraries)", device)
        _check_graph(path, session)
        return cls(session)

    @property
    def device(self) -> str:
        """The device in use: cpu or cuda."""
        return "cuda" if CUDA_PROVIDER in self._session.get_providers() else "cpu"

    def run(self, input_ids: Int64, attention_mask: Int64) -> Float32:
        """One pass over [n_rows, n_tokens]: vectors [n_rows, dim], in the CPU's memory.

        Inputs are copied to the device once and the output once from it; on a CPU the graph reads the arrays in place.
        """
        device = self.device
        binding = self._session.io_binding()
        for name, array in zip(INPUT_NAMES, (input_ids, attention_mask), strict=True):
            binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array, device, 0))
        binding.bind_output(OUTPUT_NAME, device, 0)
        binding.synchronize_inputs()
        self._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        (vectors,) = binding.copy_outputs_to_cpu()
        return np.asarray(vectors, dtype=np.float32)


def graph_path(directory: Path, precision: Precision) -> Path:
    """The graph of a precision.

    Raises:
        FailedPreconditionError: it has not been made; the message says how.
    """
    if precision == "float32":
        return directory / "model.onnx"
    path = directory / f"model.{precision}.onnx"
    if not exists(path, Path.is_file):
        raise FailedPreconditionError(
            f"encoder_precision is {precision!r}, but {path} is missing: make it with "
            f"'ragserve quantize-encoder {directory.parent} --precision {precision}'",
            field=str(path),
        )
    return path


def device_for(precision: Precision, device: Device) -> Device:
    """The device that a precision runs on: int8 is for CPUs, float16 for GPUs, float32 for both.

    Raises:
        FailedPreconditionError: another device is asked for, or the only one is not here.
    """
    only = PRECISION_DEVICE.get(precision, device)
    if device not in (only, "auto"):
        raise FailedPreconditionError(
            f"encoder_precision {precision!r} runs on {only} only, and device is {device!r}: use 'float32'",
            field="encoder_precision",
        )
    if device == "auto" and only == "cuda" and CUDA_PROVIDER not in onnxruntime.get_available_providers():
        raise FailedPreconditionError(
            f"encoder_precision {precision!r} runs on cuda only, which is not here: use 'float32' or 'int8'",
            field="encoder_precision",
        )
    return only


def read(path: Path, load: Callable[[], T]) -> T:
    """Load a file, with its name in the error.

    Raises:
        NotFoundError: it is missing.
        FailedPreconditionError: it may not be read, or cannot be loaded.
    """
    require_file(path, IMPORT_AGAIN)
    try:
        return load()
    except Exception as error:  # both libraries raise bare exceptions of their own kind
        raise FailedPreconditionError(f"{path} cannot be loaded: {reason_of(error)}", field=str(path)) from error


def _check_graph(path: Path, session: onnxruntime.InferenceSession) -> None:
    """Refuse a graph with other inputs or outputs than the ones this encoder feeds and reads."""
    inputs = {tensor.name for tensor in session.get_inputs()}
    outputs = {tensor.name for tensor in session.get_outputs()}
    if inputs != set(INPUT_NAMES) or OUTPUT_NAME not in outputs:
        raise FailedPreconditionError(
            f"{path} takes {sorted(inputs)} and gives {sorted(outputs)}; expected input_ids, attention_mask and "
            f"{OUTPUT_NAME}: import the checkpoint again",
            field=str(path),
        )
