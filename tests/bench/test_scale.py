"""The scale benchmark's data, file of figures and formulas: what its results rest on."""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np
import pytest

from bench import scale_paper, vectors
from bench.scale import sizes_up_to, too_long
from bench.scale_results import Results, factory
from bench.vectors import Synthetic
from retriever_svc.index import FaissIndex, IndexSpec
from retriever_svc.ranking import find_nearest

SIZE, DIMENSION = 2_500, 96


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Synthetic:
    monkeypatch.setattr(vectors, "CACHE", tmp_path)
    monkeypatch.setattr(vectors, "BLOCK_ROWS", 1_000)  # several blocks, the last one not full
    made = Synthetic(SIZE, DIMENSION, n_queries=20)
    made.make()
    return made


def test_neighbours_are_those_of_a_float64_scan_and_of_the_flat_index_as_served(data: Synthetic) -> None:
    scores = data.queries.astype(np.float64) @ data.mapped.T.astype(np.float64)
    assert np.array_equal(data.neighbours, np.argsort(-scores, axis=1, kind="stable")[:, :10])
    index = FaissIndex.build(data, IndexSpec("Flat", device="cpu"))
    served = find_nearest(index, data, data.queries, 10)
    assert np.array_equal(data.neighbours, np.stack([positions for positions, _ in served]))


def test_vectors_are_clustered_of_length_one_and_made_once(data: Synthetic) -> None:
    assert np.allclose(np.linalg.norm(data.mapped, axis=1), 1, atol=1e-5)
    clusters = vectors.Patches(SIZE, DIMENSION).clusters
    chosen = np.flatnonzero(clusters == clusters[0])
    inside = data.mapped[chosen] @ data.mapped[chosen].T
    outside = data.mapped[chosen] @ data.mapped[clusters != clusters[0]].T
    assert inside.mean() > 0.5 > abs(outside.mean())
    before = np.array(data.mapped)
    (data.directory / "vectors.npy").unlink()
    data.make()
    assert np.array_equal(before, Synthetic(SIZE, DIMENSION, n_queries=20).mapped)


@pytest.mark.parametrize(("layout", "name"), [("Flat, float32", "Flat"), ("HNSW32, float32", "HNSW32")])
def test_formulas_give_the_size_of_real_indexes(data: Synthetic, layout: str, name: str) -> None:
    index = FaissIndex.build(data, IndexSpec(name, device="cpu", build_threads=1))
    (formula,) = (each for each in scale_paper.layouts(SIZE, DIMENSION) if each.name == layout)
    real = len(faiss.serialize_index(index._index)) / SIZE
    assert formula.bytes_per_vector == pytest.approx(real, rel=0.01)


def test_the_formula_of_ivf_pq_gives_the_size_of_a_real_index(data: Synthetic) -> None:
    index = faiss.index_factory(DIMENSION, f"IVF{scale_paper.cells(SIZE)},PQ96x4np", faiss.METRIC_INNER_PRODUCT)
    index.train(np.array(data.mapped))
    index.add(np.array(data.mapped))
    real = len(faiss.serialize_index(index)) / SIZE
    (formula,) = (each for each in scale_paper.layouts(SIZE, DIMENSION) if each.kind == "IVF-PQ")
    less = 48 + 4 * (256 - 16) * DIMENSION / SIZE  # 4 bits instead of 8: half the code, 16 centres instead of 256
    assert formula.bytes_per_vector - less == pytest.approx(real, rel=0.05)


def test_figures_are_kept_replaced_and_extrapolated(tmp_path: Path) -> None:
    results = Results.read(tmp_path / "scale.json")
    assert results.cells == []
    for size in (100, 1_000, 10_000):
        results.put({"kind": "HNSW32", "size": size, "build_seconds": 0.0})
        results.put({"kind": "HNSW32", "size": size, "build_seconds": size**1.2})
    again = Results.read(tmp_path / "scale.json")
    assert [cell["size"] for cell in again.of("HNSW32")] == [100, 1_000, 10_000]
    assert again.slope("HNSW32", scale_paper.build_seconds) == pytest.approx(1.2)
    assert again.extrapolated("HNSW32", scale_paper.build_seconds, 100_000) == pytest.approx(1e5**1.2)
    assert again.slope("Flat", scale_paper.build_seconds) is None
    assert "10" in too_long(again, "HNSW32", 100_000, limit_seconds=10)
    assert too_long(again, "HNSW32", 100_000, limit_seconds=1e9) == ""


def test_sizes_and_factories() -> None:
    assert sizes_up_to(1_000_000) == [10_000, 100_000, 1_000_000]
    assert sizes_up_to(300_000) == [10_000, 100_000, 300_000]
    assert factory("IVF-PQ", 1_000_000) == ("IVF4000,PQ96np", "nprobe=125")
    with pytest.raises(ValueError, match="no kind of index 'LSH'"):
        factory("LSH", 10)
