"""FAISS behind the `Index` protocol: any `index_factory` string, inner product, on CPU or GPU."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from ragserve.errors import FailedPreconditionError, InvalidInputError
from ragserve.serving.cores import thread_count
from retriever_svc.device import faiss_gpus, no_cuda
from retriever_svc.index.parameters import Kind, check_options, selector
from retriever_svc.index.protocol import DEFAULT_OPTIONS, SearchOptions, VectorSource
from retriever_svc.index.spec import IndexSpec
from retriever_svc.types import Float32, Int64

TRAINING_SEED = 0
native: Any = faiss  # its stub lacks these classes
SOURCE_LOCATION = re.compile(r"^Error in .*?\.(?:cpp|h|cu|cuh):\d+: (?:Error: )?", re.DOTALL)


class FaissIndex:
    """A FAISS index that is built and then only searched."""

    def __init__(self, index: Any, spec: IndexSpec) -> None:
        """Take a built CPU index, set its search parameters and move it to the device.

        Raises:
            InvalidInputError: the search parameters do not belong to this kind of index.
            FailedPreconditionError: CUDA is asked for and FAISS or this kind of index cannot use it.
        """
        self._spec = spec
        self._kind = Kind.of(index)
        self.device = "cpu"
        self._on_cpu = index
        self._index = index
        if spec.search_parameters:
            _set_parameters(index, spec)
        if spec.device != "cpu":
            self._move_to_gpu(spec)

    @classmethod
    def build(cls, source: VectorSource, spec: IndexSpec) -> FaissIndex:
        """Build over all vectors of a source, training on a fixed sample of them where the index needs it.

        Raises:
            InvalidInputError: the factory string is wrong for FAISS, this width or this number of vectors.
            FailedPreconditionError: see the constructor.
        """
        faiss.omp_set_num_threads(thread_count(spec.build_threads))
        try:
            index = faiss.index_factory(source.dimension, spec.full_factory, faiss.METRIC_INNER_PRODUCT)
            if not index.is_trained:
                index.train(source.vectors(_sample(source.size, spec.training_vectors)))
            for block in source.vector_blocks():
                _require_finite(block)
                index.add(block)
        except RuntimeError as error:
            raise InvalidInputError(
                "index_factory",
                f"index_factory {spec.factory!r} cannot index {source.size} vectors of width {source.dimension}: "
                f"{_reason(error)}",
            ) from error
        return cls(index, spec)

    @classmethod
    def read(cls, path: Path, spec: IndexSpec) -> FaissIndex:
        """Load an index file that has been found sound (see `IndexCache`)."""
        return cls(faiss.read_index(str(path)), spec)

    def write(self, path: Path) -> None:
        """Write the index to a file."""
        faiss.write_index(self._on_cpu, str(path))

    @property
    def size(self) -> int:
        """Number of vectors."""
        return int(self._index.ntotal)

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return int(self._index.d)

    @property
    def exact(self) -> bool:
        """Whether a query is compared with every vector in float32."""
        return self._kind.is_exact

    def search(
        self, queries: Float32, n_candidates: int, options: SearchOptions = DEFAULT_OPTIONS
    ) -> tuple[Float32, Int64]:
        """Scores and positions, both [n_queries, n_candidates], best first; position -1 where nothing was found."""
        # OpenMP keeps the number of threads per calling thread, so it is set where the search runs.
        faiss.omp_set_num_threads(self._spec.threads)
        allowed = None if options.allowed is None else selector(options.allowed)
        parameters = self._kind.parameters(options.nprobe, options.ef_search, allowed)
        scores, positions = self._index.search(np.ascontiguousarray(queries), n_candidates, params=parameters)
        return scores, positions

    def check_options(self, options: SearchOptions) -> None:
        """Check the parameters of a search. Raises as `Index.check_options`."""
        check_options(options, self._spec, has_cells=self._kind.has_cells, has_graph=self._kind.has_graph)

    def close(self) -> None:
        """Nothing is held but memory."""

    def _move_to_gpu(self, spec: IndexSpec) -> None:
        if not faiss_gpus():
            if spec.device == "cuda":
                raise no_cuda("FAISS", "this build of faiss has no GPU support, or no GPU is visible")
            return
        try:
            self._resources = faiss.StandardGpuResources()
            self._index = faiss.index_cpu_to_gpu(self._resources, 0, self._on_cpu)
        except RuntimeError as error:
            if spec.device == "cuda":
                raise FailedPreconditionError(
                    f"index_factory {spec.factory!r} cannot be searched on a GPU: {_reason(error)}",
                    field="index_factory",
                ) from error
            return
        self.device = "cuda"


@contextmanager
def builds_interrupted() -> Iterator[None]:
    """Within this, builds at work anywhere in the process fail soon: FAISS asks between its steps whether to go on."""
    native.TimeoutCallback.reset(1e-9)  # seconds from now on
    try:
        yield
    finally:
        native.PythonInterruptCallback.reset()


def _sample(size: int, n_wanted: int) -> Int64:
    """A fixed random sample of positions, all of them when there are no more than wanted."""
    if size <= n_wanted:
        return np.arange(size)
    return np.sort(np.random.default_rng(TRAINING_SEED).choice(size, n_wanted, replace=False))


def _require_finite(block: Float32) -> None:
    if not np.isfinite(block).all():
        raise FailedPreconditionError(
            "the knowledge base holds a vector that is not finite: build it again", field="knowledge"
        )


def _set_parameters(index: Any, spec: IndexSpec) -> None:
    try:
        space: Any = faiss.ParameterSpace()  # its stub has the arguments' types wrong
        space.set_index_parameters(index, spec.search_parameters)
    except RuntimeError as error:
        raise InvalidInputError(
            "index_search_parameters",
            f"index_search_parameters {spec.search_parameters!r} do not fit index_factory {spec.factory!r}: "
            f"{_reason(error)}",
        ) from error


def _reason(error: RuntimeError) -> str:
    """FAISS's own sentence, without the C++ location in front of it."""
    return SOURCE_LOCATION.sub("", str(error)).strip()
