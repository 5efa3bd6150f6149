"""A FAISS index on one GPU, or divided or repeated over all of them."""

from __future__ import annotations

import logging
from typing import Any

import faiss
import numpy as np

from ragserve.errors import FailedPreconditionError
from ragserve.reasons import reason_of
from ragserve.serving.logs import fields
from retriever_svc.device import faiss_gpus, no_cuda
from retriever_svc.index.parameters import Kind
from retriever_svc.index.spec import IndexSpec
from retriever_svc.types import Float32, Int64

NO_GPU = "this build of faiss has no GPU support, or no GPU is visible"
log = logging.getLogger(__name__)
native: Any = faiss  # a CPU build's stub does not know the GPU's classes

MOST_CANDIDATES = 2048  # FAISS's GPU kernels select no more, neither candidates nor cells (GpuIndex.h, k and nprobe)
TABLE_BYTES = 49_152  # most that FAISS's kernels hold of a query's tables of products (GpuIndexIVFPQ.cu)
BLOCK_ROWS = 262_144  # rows decoded at a time on their way to a GPU


class GpuIndex:
    """A copy of a CPU index on the GPUs, which finds at most `MOST_CANDIDATES` among all positions.

    FAISS's GPU resources serve one thread, so that one thread at a time may search; where there are several GPUs FAISS
    itself runs a thread for each.
    """

    def __init__(self, index: Any, spec: IndexSpec) -> None:
        """Copy the index. Raises RuntimeError, as FAISS does, when it does not fit or has no GPU form."""
        gpus = [0] if spec.gpus == "one" else list(range(faiss_gpus()))
        self._resources = [native.StandardGpuResources() for _ in gpus]
        self._parts: list[Any] = []
        if len(gpus) > 1 and isinstance(index, faiss.IndexScalarQuantizer):
            self._index = self._spread(index, shard=spec.gpus == "shard")
        else:
            options = native.GpuMultipleClonerOptions()
            options.shard = spec.gpus == "shard"
            options.useFloat16 = needs_half_tables(Kind.of(index).core)
            self._index = native.index_cpu_to_gpu_multiple_py(self._resources, index, options, gpus)
        _require_on_gpu(self._index)
        self.n_gpus = len(gpus)
        self._nprobe = 0

    def search(self, queries: Float32, n_candidates: int, nprobe: int) -> tuple[Float32, Int64]:
        """Scores and positions [n_queries, n_candidates]; `nprobe` is 0 for an index without cells.

        Masks and search parameters are not for the GPU: its Flat index ignores selectors, replicas refuse both.
        """
        if nprobe != self._nprobe:
            self._nprobe = nprobe
            native.GpuParameterSpace().set_index_parameter(self._index, "nprobe", min(nprobe, MOST_CANDIDATES))
        found: tuple[Float32, Int64] = self._index.search(queries, n_candidates)
        return found

    def _spread(self, index: Any, *, shard: bool) -> Any:
        """Float16 vectors on several GPUs, which FAISS's own cloner would leave on the CPU without a word."""
        threaded, successive = True, True
        whole = native.IndexShards(index.d, threaded, successive) if shard else native.IndexReplicas(index.d, threaded)
        bounds = np.linspace(0, index.ntotal, len(self._resources) + 1).astype(int).tolist()
        for gpu, resources in enumerate(self._resources):
            config = native.GpuIndexFlatConfig()
            config.device, config.useFloat16 = gpu, True
            part = native.GpuIndexFlat(resources, index.d, faiss.METRIC_INNER_PRODUCT, config)
            start, stop = (bounds[gpu], bounds[gpu + 1]) if shard else (0, index.ntotal)
            for row in range(start, stop, BLOCK_ROWS):
                part.add(index.reconstruct_n(row, min(BLOCK_ROWS, stop - row)))
            self._parts.append(part)
            (whole.add_shard if shard else whole.addIndex)(part)
        return whole


def needs_half_tables(core: Any) -> bool:
    """Whether the tables of products of an IVF-PQ index fit a GPU only in float16: PQ96's do, and PQ48's in float32."""
    return isinstance(core, faiss.IndexIVFPQ) and 4 * core.pq.M * core.pq.ksub > TABLE_BYTES


def place(index: Any, spec: IndexSpec) -> GpuIndex | None:
    """The index on the GPU, or None where it stays on the CPU; the log says which and why.

    Raises:
        FailedPreconditionError: CUDA is asked for, FAISS cannot use it, and `gpu_fallback` is not set.
    """
    if spec.device == "cpu":
        return None
    if not faiss_gpus():
        _log_or_raise(spec, no_cuda("FAISS", NO_GPU, spec.device))
        return None
    try:
        placed = GpuIndex(index, spec)
    except RuntimeError as error:
        message = f"index_factory {spec.factory!r} cannot be searched on a GPU: {reason_of(error)}"
        _log_or_raise(spec, FailedPreconditionError(message, field="index_factory"))
        return None
    mode = spec.gpus if placed.n_gpus > 1 else "one"  # on a single GPU, nothing is sharded or replicated
    log.info("index is on the GPU", extra=fields(factory=spec.full_factory, gpus=placed.n_gpus, mode=mode))
    return placed


def _log_or_raise(spec: IndexSpec, why: FailedPreconditionError) -> None:
    if spec.device == "cuda" and not spec.gpu_fallback:
        raise why
    level = logging.WARNING if spec.device == "cuda" else logging.INFO
    log.log(level, "index stays on the CPU", extra=fields(factory=spec.full_factory, reason=why.message))


def _require_on_gpu(index: Any) -> None:
    """FAISS's cloner for several GPUs leaves kinds that it does not know on the CPU; say so."""
    core = Kind.of(index).core
    spread = isinstance(core, faiss.IndexShards | faiss.IndexReplicas)
    if not spread and not type(core).__name__.startswith("Gpu"):
        raise RuntimeError("This index type is not implemented on several GPUs.")
