"""Weights as int8 on disk, computed with in float32: a quarter of the size, and no int8 arithmetic to saturate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from safetensors.torch import save_file

SCALE_SUFFIX = ".scale"
METADATA = {"format": "pt", "ragserve.quantization": "int8-rowwise"}
SMALLEST = 16_384  # tensors of fewer values stay as they are
LARGEST_INT8 = 127


def quantize_rows(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """int8 [rows, cols] and float32 scales [rows, 1], so that weight is about int8 * scale."""
    scale = (weight.abs().amax(dim=1, keepdim=True) / LARGEST_INT8).clamp(min=torch.finfo(torch.float32).tiny)
    return (weight / scale).round().to(torch.int8), scale


def write_generator_weights(state: dict[str, torch.Tensor], path: Path) -> None:
    """A safetensors file in which the large matrices are int8 row-wise, and the rest float32."""
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        weight = tensor.detach().float().contiguous()
        if weight.dim() == 2 and weight.numel() >= SMALLEST:
            tensors[name], tensors[name + SCALE_SUFFIX] = quantize_rows(weight)
        else:
            tensors[name] = weight
    save_file(tensors, str(path), metadata=METADATA)
    path.chmod(0o644)


def quantize_onnx(path: Path) -> None:
    """Store the large float32 matrices of a graph as int8 with a DequantizeLinear node each, in place."""
    model = onnx.load(str(path))
    graph = model.graph
    gathered = {node.input[0] for node in graph.node if node.op_type == "Gather"}
    kept, nodes = [], []
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype != np.float32 or array.ndim != 2 or array.size < SMALLEST:
            kept.append(tensor)
            continue
        axis = 0 if tensor.name in gathered else 1  # a row of an embedding; an output column of a product
        values, scales = _quantize_along(array, axis)
        names = [f"{tensor.name}.int8", f"{tensor.name}.scale"]
        kept += [numpy_helper.from_array(values, names[0]), numpy_helper.from_array(scales, names[1])]
        nodes.append(helper.make_node("DequantizeLinear", names, [tensor.name], axis=axis))
    nodes += list(graph.node)
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _quantize_along(array: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """int8 values, and float32 scales [array.shape[axis]]."""
    scales = np.maximum(np.abs(array).max(axis=1 - axis) / LARGEST_INT8, np.finfo(np.float32).tiny)
    values = np.rint(array / np.expand_dims(scales, 1 - axis)).astype(np.int8)
    return values, scales.astype(np.float32)
