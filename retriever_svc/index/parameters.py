"""The parameters of one FAISS search: each kind of index has its own class for them, and layers wrap each other's."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from ragserve.arguments import check_range
from ragserve.errors import InvalidInputError
from ragserve.reasons import reason_of
from retriever_svc.index.protocol import SearchOptions
from retriever_svc.index.spec import IndexSpec

native: Any = faiss  # its stub knows these classes' constructors without their arguments


@dataclass(frozen=True)
class Kind:
    """What a FAISS index is made of: `core` searches, after a transform of the vectors where there is one (OPQ)."""

    whole: Any  # owns the memory of `core`, which FAISS's casts do not keep alive
    core: Any
    has_transform: bool

    @classmethod
    def of(cls, index: Any) -> Kind:
        """Look through the layers of an index."""
        core, has_transform = faiss.downcast_index(index), False
        while isinstance(core, faiss.IndexPreTransform):
            core, has_transform = faiss.downcast_index(core.index), True
        return cls(index, core, has_transform)

    @cached_property
    def has_cells(self) -> bool:
        """An IVF index, which `nprobe` is for."""
        return isinstance(self.core, faiss.IndexIVF)

    @cached_property
    def has_graph(self) -> bool:
        """An HNSW index, which `efSearch` is for."""
        return isinstance(self.core, faiss.IndexHNSW)

    @cached_property
    def takes_selector(self) -> bool:
        """Whether a CPU search can be told which positions it may return; PQ, fast scan and refined ones cannot."""
        return self.has_cells or self.has_graph or isinstance(self.core, faiss.IndexFlat | faiss.IndexScalarQuantizer)

    @cached_property
    def is_exact(self) -> bool:
        """Whether every vector is compared in float32."""
        return isinstance(self.core, faiss.IndexFlat) and not self.has_transform

    def nprobe(self, n_candidates: int, options: SearchOptions, spec: IndexSpec) -> int:
        """Cells to visit; 0 for an index without cells."""
        if not self.has_cells:
            return 0
        return cells_to_visit(
            int(options.nprobe or self.core.nprobe), int(self.core.nlist), n_candidates, options, spec
        )

    def parameters(self, n_candidates: int, options: SearchOptions, spec: IndexSpec) -> Any:
        """FAISS's search parameters, which keep alive what they refer to; None where none are needed."""
        if not self.takes_selector or (options.allowed is None and not self.has_cells and not self.has_graph):
            return None
        allowed = None if options.allowed is None else _selector(options.allowed)
        parameters: Any
        if self.has_cells:
            nprobe = self.nprobe(n_candidates, options, spec)
            parameters = native.SearchParametersIVF(sel=allowed, nprobe=nprobe, max_codes=self.core.max_codes)
        elif self.has_graph:
            asked = int(options.ef_search or self.core.hnsw.efSearch)
            ef_search = candidates_to_follow(asked, n_candidates, options, spec)
            parameters = native.SearchParametersHNSW(sel=allowed, efSearch=ef_search)
        else:
            parameters = native.SearchParameters(sel=allowed)
        return native.SearchParametersPreTransform(index_params=parameters) if self.has_transform else parameters

    def reset(self, fresh: Kind) -> None:
        """Take the search parameters of an index that was just made: a file has those that it was written with."""
        if self.has_cells:
            self.core.nprobe = fresh.core.nprobe
        if self.has_graph:
            self.core.hnsw.efSearch = fresh.core.hnsw.efSearch


def cells_to_visit(asked: int, n_cells: int, n_candidates: int, options: SearchOptions, spec: IndexSpec) -> int:
    """`nprobe` of a search: as asked, but so many cells that they should hold enough vectors that are allowed."""
    if options.allowed is not None:
        needed = ceil(2 * n_cells * n_candidates / _count(options.allowed))
        asked = max(asked, min(needed, spec.max_nprobe))
    return min(asked, n_cells)


def candidates_to_follow(asked: int, n_candidates: int, options: SearchOptions, spec: IndexSpec) -> int:
    """`efSearch` of a search: as asked, and more in proportion where only some vectors may be returned.

    FAISS counts what is not allowed among them (HNSW.cpp, search_from_candidates).
    """
    if options.allowed is None:
        return asked
    share = _count(options.allowed) / len(options.allowed)
    return max(asked, min(ceil(max(asked, n_candidates) / share), spec.max_ef_search))


def set_parameters(index: Any, spec: IndexSpec) -> None:
    """Give an index the search parameters of `spec`.

    Raises:
        InvalidInputError: they do not belong to this kind of index.
    """
    if not spec.search_parameters:
        return
    try:
        native.ParameterSpace().set_index_parameters(index, spec.search_parameters)
    except RuntimeError as error:
        raise InvalidInputError(
            "index_search_parameters",
            f"index_search_parameters {spec.search_parameters!r} do not fit index_factory {spec.factory!r}: "
            f"{reason_of(error)}",
        ) from error


def check_options(options: SearchOptions, spec: IndexSpec, *, has_cells: bool, has_graph: bool) -> None:
    """Check that a kind of index has the parameters that a search sets, within the limits of `spec`.

    Raises:
        InvalidInputError: otherwise; the field is named.
    """
    _check("nprobe", options.nprobe, spec.max_nprobe, applies=has_cells, spec=spec)
    _check("ef_search", options.ef_search, spec.max_ef_search, applies=has_graph, spec=spec)


def _check(name: str, value: int, largest: int, *, applies: bool, spec: IndexSpec) -> None:
    if not value:
        return
    if not applies:
        raise InvalidInputError(name, f"{name} cannot be set for an index of factory {spec.factory!r}: leave it out")
    check_range(name, value, 1, largest, why=f"the limit of this retriever is {largest}; 0 is the index's own value")


def _count(allowed: NDArray[np.bool_]) -> int:
    """How many are allowed, to divide by."""
    return max(int(np.count_nonzero(allowed)), 1)


def _selector(allowed: NDArray[np.bool_]) -> Any:
    """FAISS's form of a mask [size]."""
    return native.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))
