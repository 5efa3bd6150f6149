from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, helper, numpy_helper

from generator_svc.weights import TensorFile
from training.quantize import quantize_onnx, quantize_rows, write_generator_weights


def test_rows_come_back_within_half_a_step() -> None:
    weight = torch.randn(40, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 40).unsqueeze(1)
    weight[3] = 0
    values, scale = quantize_rows(weight)
    assert values.dtype == torch.int8
    assert scale.shape == (40, 1)
    assert ((values.float() * scale - weight).abs() <= scale * 0.5001).all()


def test_the_generator_reads_what_was_written(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    state = {"big": torch.randn(128, 256, generator=generator), "norm": torch.randn(64, generator=generator)}
    write_generator_weights(state, tmp_path / "model.safetensors")
    file = TensorFile(tmp_path / "model.safetensors")
    read = {name: file.read(name) for name in file.names}
    assert read.keys() == state.keys()
    assert torch.equal(read["norm"], state["norm"])
    assert (read["big"] - state["big"]).abs().max() < state["big"].abs().max() / 127
    assert (tmp_path / "model.safetensors").stat().st_size < 128 * 256 * 1.2


def test_onnx_computes_nearly_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    words = rng.normal(size=(300, 64)).astype(np.float32)
    product = rng.normal(size=(64, 300)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["embedded"]),
        helper.make_node("MatMul", ["embedded", "product"], ["out"]),
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, ["n"])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", 300])
    weights = [numpy_helper.from_array(words, "words"), numpy_helper.from_array(product, "product")]
    graph = helper.make_graph(nodes, "graph", [ids], [out], weights)
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), str(path))

    quantize_onnx(path)

    stored = {tensor.name: tensor.data_type for tensor in onnx.load(str(path)).graph.initializer}
    assert stored["words.int8"] == stored["product.int8"] == TensorProto.INT8
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    asked = np.arange(20)
    (found,) = session.run(None, {"ids": asked})
    expected = words[asked] @ product
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()
