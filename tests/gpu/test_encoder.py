"""The query encoder's precisions on a GPU, with inputs and outputs bound to it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from checkpoint_import.precision import add_precision
from ragserve.errors import FailedPreconditionError
from retriever_svc.encoder import TextEncoder
from tests.gpu.test_retriever import CUDA_PROVIDER, QUESTIONS

DEMO = Path(__file__).resolve().parents[2] / "demo" / "model"
TEXTS = [*QUESTIONS, "who?", "which river flows through the cities of Vienna, Budapest and Belgrade?"]

pytestmark = pytest.mark.skipif(
    CUDA_PROVIDER not in onnxruntime.get_available_providers(), reason="ONNX Runtime has no CUDA"
)


@pytest.fixture(scope="module")
def encoder_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = shutil.copytree(DEMO, tmp_path_factory.mktemp("gpu") / "model")
    for precision in ("float16", "int8"):
        add_precision(model, precision)
    return model / "query_encoder"


def test_float16_and_float32_are_near_the_cpu(encoder_directory: Path) -> None:
    expected = TextEncoder.load(encoder_directory, device="cpu", threads=1).encode_queries(TEXTS)
    for precision, distance in (("float32", 1e-4), ("float16", 2e-2)):
        encoder = TextEncoder.load(encoder_directory, device="cuda", threads=1, precision=precision)
        found = encoder.encode_queries(TEXTS)
        assert (encoder.device, found.dtype) == ("cuda", np.float32)
        assert np.linalg.norm(found - expected, axis=1).max() < distance  # of vectors of length 1


def test_auto_takes_the_gpu_for_float16_and_the_cpu_for_int8(encoder_directory: Path) -> None:
    for precision, device in (("float16", "cuda"), ("int8", "cpu"), ("float32", "cuda")):
        assert TextEncoder.load(encoder_directory, threads=1, precision=precision).device == device
    with pytest.raises(FailedPreconditionError, match="cpu only"):
        TextEncoder.load(encoder_directory, device="cuda", threads=1, precision="int8")


def test_float32_does_not_depend_on_the_batch(encoder_directory: Path) -> None:
    encoder = TextEncoder.load(encoder_directory, device="cuda", threads=1)
    alone = np.concatenate([encoder.encode_queries([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode_queries(TEXTS), alone, atol=1e-5)
