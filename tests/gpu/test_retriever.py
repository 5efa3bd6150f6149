"""The retriever finds the same on a GPU as on the CPU; FAISS and ONNX Runtime have packages of their own for GPUs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from retriever_svc.device import faiss_gpus
from retriever_svc.encoder import TextEncoder
from retriever_svc.index import FaissIndex, IndexSpec
from retriever_svc.ranking import find_nearest
from tests.retriever_svc.models import write_model
from tests.retriever_svc.test_index import ArraySource, random_vectors

QUESTIONS = [f"who built tower {number} of the river city?" for number in range(9)]
CUDA_PROVIDER = "CUDAExecutionProvider"


@pytest.mark.skipif(CUDA_PROVIDER not in onnxruntime.get_available_providers(), reason="ONNX Runtime has no CUDA")
def test_the_encoder_gives_the_same_vectors(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    on_gpu = TextEncoder.load(model / "query_encoder", device="cuda", threads=1)
    on_cpu = TextEncoder.load(model / "query_encoder", device="cpu", threads=1)
    assert on_gpu.device == "cuda"
    np.testing.assert_allclose(on_gpu.encode_queries(QUESTIONS), on_cpu.encode_queries(QUESTIONS), atol=1e-3)


@pytest.mark.skipif(not faiss_gpus(), reason="FAISS sees no GPU")
@pytest.mark.parametrize(("factory", "parameters"), [("Flat", ""), ("IVF8,Flat", "nprobe=8")])
def test_the_index_finds_the_same_passages(factory: str, parameters: str) -> None:
    source, queries = ArraySource(random_vectors(2000)), random_vectors(40, seed=1)
    found = []
    for device in ("cuda", "cpu"):
        index = FaissIndex.build(source, IndexSpec(factory, parameters, device))
        assert index.device == device
        found.append(find_nearest(index, source, queries, 10))
    for (positions, scores), (expected, expected_scores) in zip(*found, strict=True):
        assert positions.tolist() == expected.tolist()
        assert np.array_equal(scores, expected_scores)
