"""The query encoder in other precisions than float32, made by `checkpoint_import.precision`."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from checkpoint_import.precision import add_precision
from ragserve.errors import FailedPreconditionError
from retriever_svc.encoder import TextEncoder, token_batches
from tests.tiny import tiny_text

HAS_CUDA = "CUDAExecutionProvider" in onnxruntime.get_available_providers()
DEMO = Path(__file__).resolve().parents[2] / "demo" / "model"
TEXTS = [tiny_text(random.Random(seed).randint(1, 30), random.Random(seed)) for seed in range(40)]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = shutil.copytree(DEMO, tmp_path_factory.mktemp("int8") / "model")
    add_precision(model, "int8")
    return model


def cosines(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)


def test_int8_is_near_float32_and_has_no_float_product_by_weights(demo: Path) -> None:
    int8 = TextEncoder.load(demo / "query_encoder", threads=1, precision="int8")
    assert (int8.device, int8.precision) == ("cpu", "int8")
    float32 = TextEncoder.load(demo / "query_encoder", device="cpu", threads=1)
    found, expected = int8.encode_queries(TEXTS), float32.encode_queries(TEXTS)
    assert cosines(found, expected).mean() > 0.99
    assert not np.allclose(found, expected, atol=1e-5)
    graph = onnx.load(str(demo / "query_encoder" / "model.int8.onnx")).graph
    constants = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert not [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in constants]
    weights = [node.input[1] for node in graph.node if node.op_type == "MatMulInteger"]
    assert len(weights) == 36
    assert {constants[name] for name in weights} == {onnx.TensorProto.INT8}


def test_int8_weights_have_seven_bits(demo: Path) -> None:
    graph = onnx.load(str(demo / "query_encoder" / "model.int8.onnx")).graph
    weights = {node.input[1] for node in graph.node if node.op_type == "MatMulInteger"}
    values = [onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name in weights]
    assert max(np.abs(value).max() for value in values) == 63


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_vector_does_not_depend_on_its_batch(demo: Path, precision: str) -> None:
    encoder = TextEncoder.load(demo / "query_encoder", device="cpu", threads=1, precision=precision)
    alone = np.concatenate([encoder.encode_queries([text]) for text in TEXTS])
    for seed in range(3):
        order = random.Random(seed).sample(range(len(TEXTS)), len(TEXTS))
        together = np.empty_like(alone)
        together[order] = encoder.encode_queries([TEXTS[row] for row in order])
        np.testing.assert_allclose(together, alone, atol=1e-6, rtol=0)


def test_passes_without_padding_hold_one_length() -> None:
    lengths = [random.Random(seed).randint(1, 9) for seed in range(60)]
    batches = token_batches(lengths, 20, 0)
    assert sorted(row for batch in batches for row in batch) == list(range(60))
    for batch in batches:
        assert len({lengths[row] for row in batch}) == 1
        assert len(batch) == 1 or len(batch) * lengths[batch[0]] <= 20
    assert len(batches) < 60


def test_weights_stored_as_int8_are_computed_with_in_float32(demo: Path, tmp_path: Path) -> None:
    """The demo's graph stores its weights as int8; ONNX Runtime must not compute with them so."""
    session = onnxruntime.InferenceSession(
        str(demo / "query_encoder" / "model.onnx"), _without_optimization(), providers=["CPUExecutionProvider"]
    )
    encoder = TextEncoder.load(demo / "query_encoder", device="cpu", threads=1)
    for text in TEXTS[:6]:
        (ids,) = encoder.tokenize_queries([text])
        (expected,) = session.run(None, {"input_ids": [ids], "attention_mask": [[1] * len(ids)]})
        np.testing.assert_allclose(encoder.encode_queries([text]), expected, atol=1e-6)


def _without_optimization() -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def test_a_precision_that_was_not_made_is_refused_with_the_command(model: Path) -> None:
    with pytest.raises(FailedPreconditionError, match=r"ragserve quantize-encoder .*model --precision int8") as caught:
        TextEncoder.load(model / "query_encoder", device="cpu", threads=1, precision="int8")
    assert caught.value.field == str(model / "query_encoder" / "model.int8.onnx")


@pytest.mark.parametrize(("precision", "device"), [("int8", "cuda"), ("float16", "cpu")])
def test_a_precision_of_another_device_is_refused(demo: Path, precision: str, device: str) -> None:
    encoder = demo / "query_encoder"
    (encoder / "model.float16.onnx").touch()
    with pytest.raises(FailedPreconditionError, match="use 'float32'") as caught:
        TextEncoder.load(encoder, device=device, threads=1, precision=precision)
    assert caught.value.field == "encoder_precision"
    (encoder / "model.float16.onnx").unlink()


@pytest.mark.skipif(HAS_CUDA, reason="CUDA is here")
def test_float16_without_a_gpu_is_refused(demo: Path) -> None:
    encoder = demo / "query_encoder"
    (encoder / "model.float16.onnx").touch()
    with pytest.raises(FailedPreconditionError, match="which is not here"):
        TextEncoder.load(encoder, device="auto", threads=1, precision="float16")
    (encoder / "model.float16.onnx").unlink()
