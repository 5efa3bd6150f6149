"""How an index is built and searched, whatever holds it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ragserve.errors import InvalidInputError
from retriever_svc.device import Device

Precision = Literal["float32", "float16"]
Gpus = Literal["one", "shard", "replicate"]

HALF_PRECISION = "SQfp16"  # how an index_factory string says float16


@dataclass(frozen=True)
class IndexSpec:
    """How to build and search an index.

    `search_parameters` are FAISS's own, as "nprobe=16,efSearch=64"; a request may ask for others up to `max_nprobe`
    and `max_ef_search`. `training_vectors` bounds the sample that an index is trained on, if it needs that (IVF, PQ).
    FAISS searches the queries of a batch in parallel, so that `threads` above 1 help large batches on idle cores; on
    shared ones its threads wait for each other (10,033 vectors of 384 on two busy cores: 0.4 ms with one thread, 16 ms
    with two). `build_threads` 0 means every core. `precision` is how vectors are held where the factory string leaves
    that open. `gpus` says what several GPUs are for: the first alone, a share of the vectors on each, or all on each.
    `gpu_fallback` lets an index that is asked to be on CUDA and cannot be stay on the CPU. An approximate index gives
    `refine_factor` times k candidates, which are ranked by their true vectors. With `codes` an exact index on a CPU
    holds its vectors in 8 bits too, a quarter more, and finds the nearest of a lone query with a third of the reading.
    """

    factory: str = "Flat"
    search_parameters: str = ""
    device: Device = "auto"
    threads: int = 1
    build_threads: int = 0
    training_vectors: int = 200_000
    precision: Precision = "float32"
    gpus: Gpus = "one"
    gpu_fallback: bool = False
    max_nprobe: int = 1024
    max_ef_search: int = 4096
    refine_factor: float = 1.0
    codes: bool = True

    @property
    def flat(self) -> IndexSpec:
        """The same for an exact index in float32, which needs no training and takes no parameters."""
        return replace(self, factory="Flat", precision="float32", search_parameters="")

    @property
    def full_factory(self) -> str:
        """The factory string with the precision written out: Flat in float16 is SQfp16.

        Raises:
            InvalidInputError: float16 is asked for, and the string itself says how vectors are held.
        """
        if self.precision == "float32":
            return self.factory
        head, comma, last = self.factory.rpartition(",")
        if last == "Flat":
            return f"{head}{comma}{HALF_PRECISION}"
        if last.startswith("HNSW") and "_" not in last:
            return f"{self.factory},{HALF_PRECISION}"
        if last == HALF_PRECISION:
            return self.factory
        raise InvalidInputError(
            "index_precision",
            f"index_precision float16 does not fit index_factory {self.factory!r}, which says itself how vectors are "
            "held: leave one of them out",
        )
