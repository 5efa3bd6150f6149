"""What is around a GPU: whether it is used, and what it cannot answer. A copy on the CPU stands in for the card.

`tests/gpu/test_retriever_index.py` asks a real one.
"""

from __future__ import annotations

import logging

import faiss
import numpy as np
import pytest

from ragserve.errors import FailedPreconditionError
from retriever_svc.index import FaissIndex, IndexSpec, SearchOptions, gpu
from retriever_svc.index.parameters import Kind
from tests.retriever_svc.index.sources import ArraySource, clustered

SOURCE = ArraySource(clustered(3000, 16))
QUERIES = clustered(6, 16, seed=1)


class StandIn:
    """As little as a GPU can: no masks, no parameters but nprobe, at most 2,048 candidates."""

    n_gpus = 1

    def __init__(self, index: faiss.Index, spec: IndexSpec) -> None:
        if "HNSW" in spec.factory:
            raise RuntimeError("Error in f at GpuCloner.cpp:1: This index type is not implemented on GPU.")
        self.index = faiss.clone_index(index)
        self.calls: list[tuple[int, int, int]] = []
        self.broken = False

    def search(self, queries: np.ndarray, n_candidates: int, nprobe: int) -> tuple[np.ndarray, np.ndarray]:
        assert n_candidates <= gpu.MOST_CANDIDATES
        if self.broken:
            raise RuntimeError("CUDA error 700 an illegal memory access was encountered")
        self.calls.append((len(queries), n_candidates, nprobe))
        if nprobe:
            self.index.nprobe = nprobe
        return self.index.search(queries, n_candidates)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "faiss_gpus", lambda: 1)
    monkeypatch.setattr(gpu, "GpuIndex", StandIn)


def spec(factory: str = "Flat", **changes: object) -> IndexSpec:
    return IndexSpec(factory, build_threads=1, **{"device": "cuda", **changes})


def build(*arguments: object, **changes: object) -> tuple[FaissIndex, FaissIndex]:
    """The index on the card, and the same on the CPU."""
    on_gpu = FaissIndex.build(SOURCE, spec(*arguments, **changes))
    assert on_gpu.device == "cuda"
    return on_gpu, FaissIndex.build(SOURCE, spec(*arguments, device="cpu"))


def same(first: FaissIndex, second: FaissIndex, n: int, options: SearchOptions) -> None:
    np.testing.assert_array_equal(first.search(QUERIES, n, options)[1], second.search(QUERIES, n, options)[1])


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("share", [1.0, 0.9, 0.2, 0.003, 0.0])
@pytest.mark.parametrize("n", [10, 3000])
def test_masks_and_many_candidates_are_answered_as_on_the_cpu(share: float, n: int) -> None:
    on_gpu, on_cpu = build()
    allowed = np.random.default_rng(0).random(SOURCE.size) < share
    same(on_gpu, on_cpu, n, SearchOptions(allowed=allowed))
    same(on_gpu, on_cpu, n, SearchOptions())


@pytest.mark.usefixtures("card")
def test_a_mask_over_all_the_nearest_is_answered_by_the_cpu() -> None:
    on_gpu, on_cpu = build()
    nearest = np.argsort(-(QUERIES[0] @ SOURCE.array.T))
    allowed = np.ones(SOURCE.size, bool)
    allowed[nearest[:2500]] = False
    same(on_gpu, on_cpu, 20, SearchOptions(allowed=allowed))


@pytest.mark.usefixtures("card")
def test_nprobe_of_a_request_reaches_the_gpu() -> None:
    on_gpu, on_cpu = build("IVF16,Flat")
    for nprobe in (0, 4, 16, 0):
        same(on_gpu, on_cpu, 10, SearchOptions(nprobe=nprobe))
    assert [nprobe for *_, nprobe in on_gpu._on_gpu.calls] == [1, 4, 16, 1]


@pytest.mark.usefixtures("card")
def test_a_kind_without_a_gpu_form_falls_back_only_where_that_is_allowed(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with pytest.raises(FailedPreconditionError, match="not implemented on GPU") as caught:
        FaissIndex.build(SOURCE, spec("HNSW16"))
    assert caught.value.field == "index_factory"
    for changes, level in (({"gpu_fallback": True}, logging.WARNING), ({"device": "auto"}, logging.INFO)):
        caplog.clear()
        assert FaissIndex.build(SOURCE, spec("HNSW16", **changes)).device == "cpu"
        (record,) = caplog.records
        assert (record.levelno, record.getMessage()) == (level, "index stays on the CPU")
        assert "not implemented on GPU" in record.fields["reason"]


def test_without_a_gpu_it_falls_back_only_where_that_is_allowed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(gpu, "faiss_gpus", lambda: 0)
    with pytest.raises(FailedPreconditionError, match="'cuda'"):
        FaissIndex.build(SOURCE, spec())
    assert FaissIndex.build(SOURCE, spec(gpu_fallback=True)).device == "cpu"
    assert "no GPU is visible" in caplog.records[-1].fields["reason"]


def test_long_codes_have_tables_in_float16() -> None:
    for factory, half in (("IVF4,PQ48", False), ("IVF4,PQ64", True), ("IVF4,PQ96", True), ("Flat", False)):
        core = Kind.of(faiss.index_factory(192, factory, faiss.METRIC_INNER_PRODUCT)).core
        assert gpu.needs_half_tables(core) == half
    opq = faiss.index_factory(192, "OPQ96,IVF4,PQ96", faiss.METRIC_INNER_PRODUCT)
    assert gpu.needs_half_tables(Kind.of(opq).core)


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("gpu_fallback", [True, False])
def test_a_gpu_that_fails_later(gpu_fallback: bool, caplog: pytest.LogCaptureFixture) -> None:
    on_gpu, on_cpu = build(gpu_fallback=gpu_fallback)
    on_gpu._on_gpu.broken = True
    if not gpu_fallback:
        with pytest.raises(RuntimeError, match="CUDA error 700"):
            on_gpu.search(QUERIES, 5)
        return
    same(on_gpu, on_cpu, 5, SearchOptions())
    assert on_gpu.device == "cpu"
    assert "goes on on the CPU" in caplog.text


def test_the_log_says_that_the_gpu_is_used(card: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    build(device="auto")
    assert "index is on the GPU" in caplog.text
