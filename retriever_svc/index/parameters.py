"""The parameters of one FAISS search: each kind of index has its own class for them, and layers wrap each other's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from ragserve.errors import InvalidInputError
from retriever_svc.index.protocol import SearchOptions
from retriever_svc.index.spec import IndexSpec

native: Any = faiss  # its stub knows these classes' constructors without their arguments


@dataclass(frozen=True)
class Kind:
    """What a FAISS index is made of: `core` searches, after a transform of the vectors where there is one (OPQ)."""

    core: Any
    has_transform: bool

    @classmethod
    def of(cls, index: Any) -> Kind:
        """Look through the layers of an index."""
        core, has_transform = faiss.downcast_index(index), False
        while isinstance(core, faiss.IndexPreTransform):
            core, has_transform = faiss.downcast_index(core.index), True
        return cls(core, has_transform)

    @property
    def has_cells(self) -> bool:
        """An IVF index, which `nprobe` is for."""
        return isinstance(self.core, faiss.IndexIVF)

    @property
    def has_graph(self) -> bool:
        """An HNSW index, which `efSearch` is for."""
        return isinstance(self.core, faiss.IndexHNSW)

    @property
    def takes_selector(self) -> bool:
        """Whether a CPU search can be told which positions it may return."""
        return self.has_cells or self.has_graph or isinstance(self.core, faiss.IndexFlat | faiss.IndexScalarQuantizer)

    @property
    def is_exact(self) -> bool:
        """Whether every vector is compared in float32."""
        return isinstance(self.core, faiss.IndexFlat) and not self.has_transform

    def parameters(self, nprobe: int, ef_search: int, selector: Any) -> Any:
        """FAISS's search parameters. What is 0 or None is as in the index; they keep what they refer to alive."""
        parameters: Any
        if self.has_cells:
            parameters = native.SearchParametersIVF(
                sel=selector, nprobe=nprobe or self.core.nprobe, max_codes=self.core.max_codes
            )
        elif self.has_graph:
            parameters = native.SearchParametersHNSW(sel=selector, efSearch=ef_search or self.core.hnsw.efSearch)
        else:
            parameters = native.SearchParameters(sel=selector)
        if self.has_transform:
            return native.SearchParametersPreTransform(index_params=parameters)
        return parameters


def selector(allowed: NDArray[np.bool_]) -> Any:
    """FAISS's form of a mask [size]; it keeps the bits alive."""
    return native.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))


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
        raise InvalidInputError(name, f"{name} has no meaning for an index of factory {spec.factory!r}: leave it out")
    if not 0 < value <= largest:
        raise InvalidInputError(name, f"{name} must be 1 to {largest} here, or 0 for the index's own, not {value}")
