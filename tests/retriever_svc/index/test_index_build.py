"""Building: factory strings, precision, training, threads."""

from __future__ import annotations

import gc
import threading
from dataclasses import dataclass, field

import faiss
import numpy as np
import pytest

from ragserve.errors import FailedPreconditionError, InvalidInputError
from retriever_svc.index import FaissIndex, IndexSpec
from retriever_svc.index.parameters import Kind
from tests.retriever_svc.index.sources import ArraySource, clustered

SOURCE = ArraySource(clustered(600, 16))


@pytest.mark.parametrize(
    ("factory", "full", "kind"),
    [
        ("Flat", "SQfp16", faiss.IndexScalarQuantizer),
        ("HNSW16", "HNSW16,SQfp16", faiss.IndexHNSWSQ),
        ("HNSW16,Flat", "HNSW16,SQfp16", faiss.IndexHNSWSQ),
        ("IVF8,Flat", "IVF8,SQfp16", faiss.IndexIVFScalarQuantizer),
        ("OPQ4,IVF8,Flat", "OPQ4,IVF8,SQfp16", faiss.IndexIVFScalarQuantizer),
        ("IVF8,SQfp16", "IVF8,SQfp16", faiss.IndexIVFScalarQuantizer),
    ],
)
def test_float16_is_part_of_the_factory_string(factory: str, full: str, kind: type) -> None:
    spec = IndexSpec(factory, device="cpu", build_threads=1, precision="float16")
    assert spec.full_factory == full
    assert IndexSpec(factory).full_factory == factory
    index = FaissIndex.build(SOURCE, spec)
    core = Kind.of(index._index).core
    assert isinstance(core, kind)
    held = faiss.downcast_index(core.storage) if isinstance(core, faiss.IndexHNSW) else core
    assert held.sq.qtype == faiss.ScalarQuantizer.QT_fp16


@pytest.mark.parametrize("factory", ["IVF8,PQ4", "IVF8,SQ8", "HNSW16_PQ4", "PQ4"])
def test_float16_contradicts_a_string_that_says_how_vectors_are_held(factory: str) -> None:
    with pytest.raises(InvalidInputError) as caught:
        FaissIndex.build(SOURCE, IndexSpec(factory, device="cpu", precision="float16"))
    assert caught.value.field == "index_precision"


def test_a_kind_that_faiss_builds_with_another_metric_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="no inner product") as caught:
        FaissIndex.build(SOURCE, IndexSpec("HNSW16_PQ4", device="cpu"))
    assert caught.value.field == "index_factory"


@dataclass(frozen=True)
class Watched(ArraySource):
    """A source that notes what is asked for."""

    asked: list = field(default_factory=list)

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        self.asked.append(positions.tolist())
        return super().vectors(positions)


def test_training_takes_a_fixed_sample() -> None:
    sources = [Watched(SOURCE.array), Watched(SOURCE.array)]
    spec = IndexSpec("IVF4,Flat", device="cpu", build_threads=1, training_vectors=200)
    first, second = (FaissIndex.build(source, spec) for source in sources)
    (sample,) = sources[0].asked
    assert len(set(sample)) == 200
    assert sources[0].asked == sources[1].asked
    np.testing.assert_array_equal(first.search(SOURCE.array, 5)[1], second.search(SOURCE.array, 5)[1])
    flat = Watched(SOURCE.array)
    FaissIndex.build(flat, IndexSpec("Flat", device="cpu"))
    assert flat.asked == []


def test_training_leaves_out_what_no_search_asks_for() -> None:
    for parameters, polysemous in (("", False), ("ht=20", True)):
        spec = IndexSpec("PQ2x4", parameters, device="cpu", build_threads=1)
        kind = Kind.of(FaissIndex.build(SOURCE, spec)._index)
        gc.collect()
        assert kind.core.do_polysemous_training is polysemous


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_vector_that_is_not_finite_is_refused(value: float) -> None:
    array = SOURCE.array.copy()
    array[500, 3] = value
    with pytest.raises(FailedPreconditionError, match="not finite"):
        FaissIndex.build(ArraySource(array), IndexSpec("Flat", device="cpu"))


def test_a_build_in_another_thread_leaves_a_search_its_threads_and_results() -> None:
    index = FaissIndex.build(SOURCE, IndexSpec("Flat", device="cpu", threads=1, build_threads=1))
    before = index.search(SOURCE.array, 5)[1]
    built = []
    spec = IndexSpec("HNSW16", device="cpu", build_threads=2)
    rebuild = threading.Thread(target=lambda: built.extend(FaissIndex.build(SOURCE, spec) for _ in range(3)))
    rebuild.start()
    while rebuild.is_alive():
        np.testing.assert_array_equal(index.search(SOURCE.array, 5)[1], before)
        assert faiss.omp_get_max_threads() == 1
    rebuild.join()
    assert [each.size for each in built] == [600, 600, 600]
