"""FAISS behind the `Index` protocol: any `index_factory` string, inner product, on CPU or GPU."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from ragserve.errors import InvalidInputError
from ragserve.printable import counted
from ragserve.reasons import reason_of
from ragserve.serving.cores import thread_count
from ragserve.serving.logs import fields
from retriever_svc.index import gpu
from retriever_svc.index.code_scan import FAST_HERE, LEAST_VECTORS, CodeScan
from retriever_svc.index.overfetch import nothing, search_allowed
from retriever_svc.index.parameters import Kind, check_options, set_parameters
from retriever_svc.index.protocol import DEFAULT_OPTIONS, SearchOptions, VectorSource
from retriever_svc.index.spec import IndexSpec
from retriever_svc.index.vectors import finite_blocks, sample
from retriever_svc.types import Float32, Int64

log = logging.getLogger(__name__)
native: Any = faiss  # its stub lacks some classes
MATRIX_QUERIES = 4  # from so many queries on, a matrix product is faster than one query after the other
SCANNED_QUERIES = 15  # up to so many queries, codes are faster than that: with 10,033 and 200,000 vectors


class TrainingError(InvalidInputError):
    """An index cannot be trained on these vectors: mostly because they are fewer than its cells or codes."""


class FaissIndex:
    """A FAISS index that is built and then only searched, by one thread at a time.

    On a GPU the index on the CPU is kept: it answers what the GPU cannot, which is more than 2,048 candidates, and
    masks that leave less than enough among the 2,048 best.
    """

    def __init__(self, index: Any, spec: IndexSpec) -> None:
        """Take a built CPU index, set its search parameters and copy it to the device.

        Raises:
            InvalidInputError: the search parameters do not belong to this kind of index.
            FailedPreconditionError: CUDA is asked for, FAISS or this kind of index cannot use it, and falling back to
                the CPU is not allowed.
        """
        # FAISS compares a batch as one matrix product only from this many queries times their width on, which is meant
        # for smaller vectors: 64 queries over 10,033 vectors of 384 took 2.4 ms each, and as a product 0.33 ms.
        native.cvar.distance_compute_blas_threshold = MATRIX_QUERIES * index.d
        self._spec = spec
        self._kind = self._parameters_of = Kind.of(index)
        self._index = index
        self._size, self._dimension = int(index.ntotal), int(index.d)  # asked for at every search
        set_parameters(index, spec)
        self._on_gpu = gpu.place(index, spec)
        self._scan: CodeScan | None = None

    @classmethod
    def build(cls, source: VectorSource, spec: IndexSpec) -> FaissIndex:
        """Build over all vectors of a source, training on a fixed sample of them where the index needs it.

        Raises:
            InvalidInputError: the factory string is wrong for FAISS or this width.
            TrainingError: it cannot be trained on these vectors.
            FailedPreconditionError: a vector is not finite; else see the constructor.
        """
        # OpenMP keeps the number of threads per calling thread: a search in another thread does not see this.
        faiss.omp_set_num_threads(thread_count(spec.build_threads))
        with _named(source, spec):
            index = _new(source.dimension, spec)
        if not index.is_trained:
            with _named(source, spec, TrainingError):
                index.train(sample(source, spec.training_vectors))
        with _named(source, spec):
            _fill(index, source)
        built = cls(index, spec)
        with _named(source, spec):
            built._make_codes()
        return built

    @classmethod
    def build_exact(cls, source: VectorSource, spec: IndexSpec) -> FaissIndex:
        """A Flat index in place of one that cannot be trained; searches may set that one's parameters, to no effect.

        Raises as `build`.
        """
        with _named(source, spec):
            kind = Kind.of(_new(source.dimension, spec))
        flat = cls.build(source, spec.flat)
        flat._spec, flat._parameters_of = spec, kind
        return flat

    @classmethod
    def read(cls, path: Path, spec: IndexSpec) -> FaissIndex:
        """Load an index file that has been found sound (see `IndexCache`). Raises RuntimeError if FAISS cannot."""
        index = faiss.read_index(str(path))
        Kind.of(index).reset(Kind.of(_new(index.d, spec)))
        loaded = cls(index, spec)
        loaded._make_codes()
        return loaded

    def write(self, path: Path) -> None:
        """Write the index to a file. Raises RuntimeError, as FAISS does, when that fails."""
        faiss.write_index(self._index, str(path))

    @property
    def size(self) -> int:
        """Number of vectors."""
        return self._size

    @property
    def dimension(self) -> int:
        """Width of the vectors."""
        return self._dimension

    @property
    def device(self) -> str:
        """Where it is searched: cpu or cuda."""
        return "cpu" if self._on_gpu is None else "cuda"

    @property
    def exact(self) -> bool:
        """Whether a query is compared with every vector in float32."""
        return self._kind.is_exact

    @property
    def refine_factor(self) -> float:
        """How many times k candidates are worth ranking by their true vectors."""
        return 1.0 if self.exact else self._spec.refine_factor

    def check_options(self, options: SearchOptions) -> None:
        """Check the parameters of a search. Raises as `Index.check_options`."""
        kind = self._parameters_of
        check_options(options, self._spec, has_cells=kind.has_cells, has_graph=kind.has_graph)

    def search(
        self, queries: Float32, n_candidates: int, options: SearchOptions = DEFAULT_OPTIONS
    ) -> tuple[Float32, Int64]:
        """Scores and positions, both [n_queries, n_candidates], best first; position -1 where nothing was found.

        With `allowed` an exact index finds all it is asked for. IVF and HNSW indexes look further the fewer are
        allowed, within `max_nprobe` and `max_ef_search`, and may still find fewer.
        """
        if options.allowed is not None and not options.allowed.any():
            return nothing(len(queries), n_candidates)
        faiss.omp_set_num_threads(self._spec.threads)  # of this thread: see `build`
        queries = np.ascontiguousarray(queries)
        if self._on_gpu is not None and n_candidates <= gpu.MOST_CANDIDATES:
            try:
                return self._search_gpu(self._on_gpu, queries, n_candidates, options)
            except RuntimeError as error:
                if not self._spec.gpu_fallback:
                    raise
                log.exception("the GPU failed, index goes on on the CPU", extra=fields(reason=reason_of(error)))
                self._on_gpu = None
        return self._search_cpu(queries, n_candidates, options)

    def close(self) -> None:
        """Let go of the GPU's copy."""
        self._on_gpu = None

    def _make_codes(self) -> None:
        """Where they are wanted and pay. Raises RuntimeError when builds are interrupted."""
        wanted = self._spec.codes and FAST_HERE and self.exact and self._on_gpu is None
        if wanted and self.size >= LEAST_VECTORS:
            self._scan = CodeScan(self._kind.core)

    def _search_cpu(self, queries: Float32, n_candidates: int, options: SearchOptions) -> tuple[Float32, Int64]:
        if self._scan is not None and options.allowed is None and len(queries) <= SCANNED_QUERIES:
            scanned = self._scan.search(queries, n_candidates)
            if scanned is not None:
                return scanned
        if options.allowed is None or self._kind.takes_selector:
            parameters = self._kind.parameters(n_candidates, options, self._spec)
            found: tuple[Float32, Int64] = self._index.search(queries, n_candidates, params=parameters)
            return found
        scores, positions, _ = search_allowed(self._index.search, queries, n_candidates, options.allowed, self.size)
        return scores, positions

    def _search_gpu(
        self, on_gpu: gpu.GpuIndex, queries: Float32, n_candidates: int, options: SearchOptions
    ) -> tuple[Float32, Int64]:
        nprobe = self._kind.nprobe(n_candidates, options, self._spec)

        def search(some: Float32, n_wanted: int) -> tuple[Float32, Int64]:
            return on_gpu.search(some, n_wanted, nprobe)

        if options.allowed is None:
            return search(queries, n_candidates)
        scores, positions, undone = search_allowed(search, queries, n_candidates, options.allowed, gpu.MOST_CANDIDATES)
        if len(undone):
            scores[undone], positions[undone] = self._search_cpu(queries[undone], n_candidates, options)
        return scores, positions


def _fill(index: Any, source: VectorSource) -> None:
    """Add all vectors; a Flat index reads them where they lie in memory, if they do, instead of copying them."""
    array = source.array if Kind.of(index).is_exact else None
    for block in finite_blocks(source):
        if array is None:
            index.add(block)
    if array is not None and array.size:
        nothing_owned = native.MaybeOwnedVectorUInt8()
        pointer = faiss.swig_ptr(array)
        index.codes = native.MaybeOwnedVectorUInt8.create_view(pointer, array.nbytes, nothing_owned.owner)
        index.ntotal = len(array)
        index.referenced_objects = [array]  # as FAISS's own Python code keeps what its objects point to


def _new(dimension: int, spec: IndexSpec) -> Any:
    """An empty index. Raises RuntimeError, as FAISS does, when the factory string is wrong."""
    index = faiss.index_factory(dimension, spec.full_factory, faiss.METRIC_INNER_PRODUCT)
    core = Kind.of(index).core
    if core.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise RuntimeError("FAISS has no inner product for it.")
    if hasattr(core, "do_polysemous_training"):
        # Most of the time that training takes, for what is used only where a search parameter asks for it.
        core.do_polysemous_training = "ht=" in spec.search_parameters
    return index


@contextmanager
def _named(source: VectorSource, spec: IndexSpec, kind: type[InvalidInputError] = InvalidInputError) -> Iterator[None]:
    """Raises what FAISS has against the factory string as an error that names it."""
    try:
        yield
    except RuntimeError as error:
        raise kind(
            "index_factory",
            f"index_factory {spec.full_factory!r} cannot index {counted(source.size, 'vector')} of width "
            f"{source.dimension}: {reason_of(error)}",
        ) from error


@contextmanager
def builds_interrupted() -> Iterator[None]:
    """Within this, builds at work anywhere in the process fail soon: FAISS asks between its steps whether to go on."""
    native.TimeoutCallback.reset(1e-9)  # seconds from now on
    try:
        yield
    finally:
        native.PythonInterruptCallback.reset()
