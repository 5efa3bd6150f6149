"""A float32 encoder graph as int8 for CPUs: weights of 7 bits, activations of 8 bits scaled row by row.

CPUs without VNNI add products of unsigned activations and signed weights in pairs of 16 bits, which saturates when
weights have 8 bits; 7 fit. Every weight column has its own scale, chosen for the smallest squared error. Every row of
activations (a token) has its own scale and offset, where ONNX Runtime's dynamic quantization has one for the whole
tensor: so a text's vector does not depend on the texts that it shares a pass with, and errs less.

With x = offset + scale_x q and W = scale_w P, a product is x W = scale_x scale_w (q P) + offset (1 W), where 1 W are
the column sums of W.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from ragserve.errors import FailedPreconditionError

WEIGHT_LIMIT = 63  # largest absolute value of 7 bits, zero in the middle
ACTIVATION_STEPS = 255
# Parts of a column's largest value that are tried as the limit of its scale.
CLIPPINGS = np.linspace(0.7, 1.0, 13, dtype=np.float32)
MIN_OPSET = 18  # from which ReduceMax takes its axes as an input
TINY = np.float32(1e-30)
CONSTANTS: dict[str, Any] = {
    "int8.step": np.float32(1 / ACTIVATION_STEPS),
    "int8.tiny": TINY,
    "int8.last_axis": np.array([-1], dtype=np.int64),
}

Float32 = NDArray[np.float32]


def to_int8(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with every product by a constant matrix in int8; other operators stay float32.

    Raises:
        FailedPreconditionError: the graph's operators are older than what is needed, or it has no such product.
    """
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    if opset < MIN_OPSET:
        raise FailedPreconditionError(f"the graph has operator set {opset}; int8 needs {MIN_OPSET}: import it again")
    graph = Int8Graph(fold_weights(model))
    if not graph.replaced:
        raise FailedPreconditionError("the graph has no product by a constant matrix that int8 could take")
    onnx.checker.check_model(graph.model)
    return graph.model


def fold_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which weights that are stored as int8 (DequantizeLinear of a constant) are plain float32."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    folded: set[str] = set()
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or not all(name in constants for name in node.input):
            nodes.append(node)
            continue
        values, scale, *zero = [numpy_helper.to_array(constants[name]) for name in node.input]
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        shape = [-1 if place == axis % values.ndim else 1 for place in range(values.ndim)] if scale.ndim else []
        shifted = values.astype(np.float32) - (zero[0].astype(np.float32).reshape(shape) if zero else 0)
        weight = (shifted * scale.reshape(shape)).astype(np.float32)
        constants[node.output[0]] = numpy_helper.from_array(weight, node.output[0])
        folded.update(node.input)
    _replace(graph, nodes, [tensor for name, tensor in constants.items() if name not in folded])
    return copy


def quantize_columns(weight: Float32) -> tuple[NDArray[np.int8], Float32]:
    """7-bit values [n_in, n_out] and the scale of each column [n_out], so that weight is about values * scale."""
    largest = np.maximum(np.abs(weight).max(axis=0), TINY)
    best, error = largest / WEIGHT_LIMIT, np.full(weight.shape[1], np.inf, dtype=np.float32)
    for clipping in CLIPPINGS:
        scale = largest * (clipping / WEIGHT_LIMIT)
        found = np.square(_rounded(weight, scale) * scale - weight).sum(axis=0)
        best, error = np.where(found < error, scale, best), np.minimum(found, error)
    return _rounded(weight, best).astype(np.int8), best


class Int8Graph:
    """Rewrites a graph; `replaced` counts its products. Products of one input share its quantization."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.replaced = 0
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._nodes: list[onnx.NodeProto] = []
        self._rows_done: set[str] = set()
        matrices = {name for name, tensor in self._constants.items() if _is_matrix(tensor)}
        for node in model.graph.node:
            if node.op_type == "MatMul" and node.input[1] in matrices:
                self._quantize_rows(node.input[0])
                self._multiply(node)
            else:
                self._nodes.append(node)
        self._add_constants(CONSTANTS)
        used = {name for node in self._nodes for name in node.input}
        _replace(model.graph, self._nodes, [tensor for name, tensor in self._constants.items() if name in used])

    def _quantize_rows(self, x: str) -> None:
        """`x.int8` [..., n_in] with `x.scale` and `x.offset` [..., 1]."""
        if x in self._rows_done:
            return
        self._rows_done.add(x)
        self._add("ReduceMax", [x, "int8.last_axis"], f"{x}.largest", keepdims=1)
        self._add("ReduceMin", [x, "int8.last_axis"], f"{x}.offset", keepdims=1)
        self._add("Sub", [f"{x}.largest", f"{x}.offset"], f"{x}.range")
        self._add("Mul", [f"{x}.range", "int8.step"], f"{x}.step")
        self._add("Max", [f"{x}.step", "int8.tiny"], f"{x}.scale")
        self._add("Sub", [x, f"{x}.offset"], f"{x}.shifted")
        self._add("Div", [f"{x}.shifted", f"{x}.scale"], f"{x}.steps")
        self._add("Round", [f"{x}.steps"], f"{x}.rounded")
        self._add("Cast", [f"{x}.rounded"], f"{x}.int8", to=TensorProto.UINT8)

    def _multiply(self, node: onnx.NodeProto) -> None:
        """The product in integers, scaled back, and the offset's part added."""
        x, name = node.input
        out = node.output[0]
        weight = numpy_helper.to_array(self._constants[name])
        values, scale = quantize_columns(weight)
        sums = (values.astype(np.float64) * scale).sum(axis=0).astype(np.float32)
        self._add_constants({f"{name}.int8": values, f"{name}.scale": scale, f"{name}.sums": sums})
        self._add("MatMulInteger", [f"{x}.int8", f"{name}.int8"], f"{out}.integer")
        self._add("Cast", [f"{out}.integer"], f"{out}.float", to=TensorProto.FLOAT)
        self._add("Mul", [f"{out}.float", f"{name}.scale"], f"{out}.columns")
        self._add("Mul", [f"{out}.columns", f"{x}.scale"], f"{out}.scaled")
        self._add("Mul", [f"{x}.offset", f"{name}.sums"], f"{out}.offset")
        self._add("Add", [f"{out}.scaled", f"{out}.offset"], out)
        self.replaced += 1

    def _add(self, op_type: str, inputs: list[str], output: str, **attributes: Any) -> None:
        self._nodes.append(helper.make_node(op_type, inputs, [output], **attributes))

    def _add_constants(self, arrays: dict[str, Any]) -> None:
        for name, array in arrays.items():
            self._constants[name] = numpy_helper.from_array(np.asarray(array), name)


def _is_matrix(tensor: onnx.TensorProto) -> bool:
    return tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2


def _rounded(weight: Float32, scale: Float32) -> Float32:
    rounded: Float32 = np.clip(np.rint(weight / scale), -WEIGHT_LIMIT, WEIGHT_LIMIT)
    return rounded


def _replace(graph: onnx.GraphProto, nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]) -> None:
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
