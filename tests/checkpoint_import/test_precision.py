"""Other precisions of a query encoder: made at import or later, checked against float32, listed in the manifest."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from checkpoint_import import ImportOptions, import_checkpoint
from checkpoint_import.int8 import fold_weights, quantize_columns, to_int8
from checkpoint_import.precision import add_precision
from ragserve.checkpoint import load_manifest, verify_files
from ragserve.errors import DataLossError, FailedPreconditionError, InvalidInputError, NotFoundError
from retriever_svc.encoder import TextEncoder
from tests.tiny import tiny_model_dir
from training.quantize import quantize_onnx

FILE = "query_encoder/model.int8.onnx"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model_dir(tmp_path_factory.mktemp("precision"))


@pytest.fixture
def model(tiny: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny, tmp_path / "model")


def product(path: Path, weight: np.ndarray, opset: int = 18, *, operator: str = "MatMul") -> Path:
    """A graph of one operator: x [n, n_in] with a constant."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weight.shape[0]])
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, ["n", weight.shape[1]])
    node = helper.make_node(operator, ["x", "weight"], ["out"])
    graph = helper.make_graph([node], "graph", [x], [out], [numpy_helper.from_array(weight, "weight")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9), str(path))
    return path


def run(graph: onnx.ModelProto, **inputs: Any) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, inputs)[0])


def test_columns_come_back_near_and_better_than_by_their_largest_value() -> None:
    weight = np.random.default_rng(0).normal(size=(256, 40)).astype(np.float32) * np.logspace(-3, 2, 40, dtype="f4")
    weight[:, 3] = 0
    values, scale = quantize_columns(weight)
    assert (values.dtype, np.abs(values).max()) == (np.int8, 63)
    by_largest = np.maximum(np.abs(weight).max(axis=0) / 63, 1e-30)
    naive = np.square(np.rint(weight / by_largest) * by_largest - weight).sum(axis=0)
    found = np.square(values * scale - weight).sum(axis=0)
    assert (found <= naive * 1.001).all()
    assert found.sum() < naive.sum()


def test_the_worst_products_do_not_saturate(tmp_path: Path) -> None:
    """All activations at the top and all weights at the limit, where 8-bit weights overflow 16 bits without VNNI."""
    weight = np.ones((512, 8), dtype=np.float32)
    x = np.full((3, 512), 5.0, dtype=np.float32)
    x[:, 0] = -5.0
    found = run(to_int8(onnx.load(str(product(tmp_path / "m.onnx", weight)))), x=x)
    np.testing.assert_allclose(found, x @ weight, rtol=1e-4)


def test_a_row_is_computed_alike_whatever_the_other_rows_hold(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(64, 48)).astype(np.float32)
    graph = to_int8(onnx.load(str(product(tmp_path / "m.onnx", weight))))
    x = rng.normal(size=(9, 64)).astype(np.float32) * np.logspace(-2, 3, 9, dtype="f4")[:, None]
    together = run(graph, x=x)
    assert np.array_equal(together, np.concatenate([run(graph, x=row[None]) for row in x]))
    error = np.abs(together - x @ weight).max(axis=1) / np.abs(x).max(axis=1)
    assert error.max() < 1.0  # of 64 sums of products of about 1
    zero = run(graph, x=np.zeros((1, 64), dtype=np.float32))
    assert not zero.any()


def test_weights_stored_as_int8_are_folded(tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    path = product(tmp_path / "m.onnx", rng.normal(size=(160, 128)).astype(np.float32))
    quantize_onnx(path)
    stored = onnx.load(str(path))
    folded = fold_weights(stored)
    assert [node.op_type for node in folded.graph.node] == ["MatMul"]
    x = rng.normal(size=(4, 160)).astype(np.float32)
    assert "DequantizeLinear" in [node.op_type for node in stored.graph.node]  # a copy was changed
    np.testing.assert_allclose(run(folded, x=x), x @ numpy_helper.to_array(folded.graph.initializer[0]), atol=1e-4)


def test_a_graph_that_int8_cannot_take_is_refused(tmp_path: Path) -> None:
    weight = np.ones((4, 4), dtype=np.float32)
    with pytest.raises(FailedPreconditionError, match="operator set 13"):
        to_int8(onnx.load(str(product(tmp_path / "m.onnx", weight, opset=13))))
    with pytest.raises(FailedPreconditionError, match="no product"):
        to_int8(onnx.load(str(product(tmp_path / "m.onnx", weight, operator="Add"))))


def test_added_later_the_file_is_listed_and_the_rest_is_as_it_was(model: Path) -> None:
    before = load_manifest(model)
    path = add_precision(model, "int8")
    after = load_manifest(model)
    assert path == model / FILE
    assert {name: value for name, value in after.files.items() if name != FILE} == before.files
    assert (after.kind, after.rag, after.generation) == (before.kind, before.rag, before.generation)
    verify_files(model, after, "query_encoder")
    assert sorted(file.name for file in (model / "query_encoder").iterdir()) == [
        *("encoder.json", "model.int8.onnx", "model.onnx", "tokenizer.json")
    ]
    add_precision(model, "int8")  # made again
    assert load_manifest(model) == after
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataLossError, match=r"model\.int8\.onnx"):
        verify_files(model, after, "query_encoder")
    add_precision(model, "int8")  # a damaged file of an earlier conversion is no obstacle
    verify_files(model, load_manifest(model), "query_encoder")


def test_float16_gives_float32_vectors_near_the_others(model: Path) -> None:
    path = add_precision(model, "float16")
    graph = onnx.load(str(path)).graph
    assert graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert {tensor.data_type for tensor in graph.initializer if len(tensor.dims) == 2} == {TensorProto.FLOAT16}
    encoder = TextEncoder.load(model / "query_encoder", device="cpu", threads=1)
    (ids,) = encoder.tokenize_queries(["who was born in the old city?"])
    inputs = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), dtype=np.int64)}
    found = run(onnx.load(str(path)), **inputs)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, encoder.encode_tokens([ids]), atol=0.05)


def test_made_at_import(bart_composite: Path, tmp_path: Path) -> None:
    made = import_checkpoint(bart_composite, tmp_path / "model", ImportOptions(encoder_precisions=("int8", "float16")))
    assert {FILE, "query_encoder/model.float16.onnx"} <= made.manifest.files.keys()
    verify_files(tmp_path / "model", made.manifest, "query_encoder")
    encoder = TextEncoder.load(tmp_path / "model" / "query_encoder", threads=1, precision="int8")
    assert encoder.encode_queries(["who?"]).shape == (1, encoder.config.dim)


def test_a_graph_that_differs_grossly_is_refused_and_nothing_is_left(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of one bit and a half."""
    monkeypatch.setattr("checkpoint_import.int8.WEIGHT_LIMIT", 1)
    before = load_manifest(model)
    with pytest.raises(FailedPreconditionError, match=r"model\.onnx: .*mean cosine.*serve this encoder in float32"):
        add_precision(model, "int8")
    assert not (model / FILE).exists()
    assert load_manifest(model) == before
    verify_files(model, before, "query_encoder")


def test_what_is_wrong_is_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="int4") as caught:
        add_precision(model, "int4")  # type: ignore[arg-type]
    assert caught.value.field == "encoder_precision"
    with pytest.raises(NotFoundError, match=r"ragserve\.json"):
        add_precision(tmp_path / "nowhere", "int8")
    graph = model / "query_encoder" / "model.onnx"
    graph.write_bytes(graph.read_bytes()[:-9])
    with pytest.raises(DataLossError, match=r"model\.onnx"):
        add_precision(model, "int8")
    graph.unlink()
    with pytest.raises(NotFoundError, match=r"model\.onnx is missing"):
        add_precision(model, "int8")
