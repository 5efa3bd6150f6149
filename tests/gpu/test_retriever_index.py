"""FAISS indexes on real GPUs find what they find on the CPU: kinds, precisions, masks, several cards."""

from __future__ import annotations

import numpy as np
import pytest

from retriever_svc.device import faiss_gpus
from retriever_svc.index import FaissIndex, IndexSpec, SearchOptions
from tests.retriever_svc.index.sources import ArraySource, clustered

pytestmark = pytest.mark.skipif(not faiss_gpus(), reason="FAISS sees no GPU")

SOURCE = ArraySource(clustered(20_000, 64))
QUERIES = clustered(32, 64, seed=1)
KINDS = {
    "Flat": IndexSpec("Flat"),
    "Flat float16": IndexSpec("Flat", precision="float16"),
    "IVF": IndexSpec("IVF64,Flat", "nprobe=16"),
    "IVF float16": IndexSpec("IVF64,Flat", "nprobe=16", precision="float16"),
    "IVF-PQ": IndexSpec("IVF64,PQ16", "nprobe=16"),
    "IVF-PQ, tables in float16": IndexSpec("IVF64,PQ64", "nprobe=16"),
    "OPQ IVF-PQ": IndexSpec("OPQ16,IVF64,PQ16", "nprobe=16"),
}


def changed(spec: IndexSpec, **changes: object) -> IndexSpec:
    return IndexSpec(**{**vars(spec), **changes})


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    pairs = zip(first, second, strict=True)
    return sum(len(set(a.tolist()) & set(b.tolist())) for a, b in pairs) / first.size


@pytest.mark.parametrize("gpus", ["one", "shard", "replicate"])
@pytest.mark.parametrize("kind", KINDS)
def test_finds_what_the_cpu_finds(kind: str, gpus: str) -> None:
    on_cpu = FaissIndex.build(SOURCE, changed(KINDS[kind], device="cpu"))
    on_gpu = FaissIndex(on_cpu._index, changed(KINDS[kind], device="cuda", gpus=gpus))
    assert on_gpu.device == "cuda"
    for share in (None, 0.9, 0.3, 0.002):
        allowed = None if share is None else np.random.default_rng(0).random(SOURCE.size) < share
        options = SearchOptions(allowed=allowed)
        scores, positions = on_gpu.search(QUERIES, 20, options)
        expected_scores, expected = on_cpu.search(QUERIES, 20, options)
        assert overlap(positions, expected) > 0.97
        assert allowed is None or allowed[positions[positions >= 0]].all()
        np.testing.assert_allclose(scores[:, 0], expected_scores[:, 0], atol=5e-3)
    assert overlap(on_gpu.search(QUERIES, 3000)[1], on_cpu.search(QUERIES, 3000)[1]) > 0.97


def test_nprobe_of_a_request_is_used() -> None:
    index = FaissIndex.build(SOURCE, IndexSpec("IVF64,Flat", device="cuda"))
    nearest = np.argsort(-(QUERIES @ SOURCE.array.T), axis=1)[:, :20]
    found = [overlap(index.search(QUERIES, 20, SearchOptions(nprobe=nprobe))[1], nearest) for nprobe in (1, 8, 64)]
    assert found[0] < found[2]
    assert found[2] > 0.99
    assert overlap(index.search(QUERIES, 20)[1], nearest) == found[0]


def test_a_graph_falls_back_only_where_that_is_allowed() -> None:
    assert FaissIndex.build(SOURCE, IndexSpec("HNSW16", device="cuda", gpu_fallback=True)).device == "cpu"
