"""What the searcher asks of a vector index, and what an index is built from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from retriever_svc.types import Float32, Int64


@dataclass(frozen=True, eq=False)
class SearchOptions:
    """What one search asks of an index: which positions it may return, and how far an approximate index looks.

    `check_options` of an index says whether it has the parameters that are set; `search` takes them as checked.
    """

    allowed: NDArray[np.bool_] | None = None  # [size], True at positions that may be returned; None: all
    nprobe: int = 0  # cells of an IVF index to visit; 0: the index's own setting
    ef_search: int = 0  # candidates of an HNSW search; 0: the index's own setting


DEFAULT_OPTIONS = SearchOptions()


class Index(Protocol):
    """Finds vectors by inner product. Positions count from 0 in the order of the knowledge base's version.

    It is built once and then only searched, by one thread at a time. Another index may be built in another thread
    meanwhile.

    How many candidates a search with `allowed` finds: an exact index finds as many as are asked for and allowed. An
    approximate one may find fewer, the more so the fewer are allowed: an HNSW search walks through what is not allowed,
    but keeps no more than the `ef_search` best that are; an IVF search sees only the cells that it visits. So where few
    are allowed (up to 1,000 or 1 % of the vectors), comparing the query with those alone is both faster and exact, and
    the caller does that itself.
    """

    @property
    def size(self) -> int:
        """Number of vectors."""

    @property
    def dimension(self) -> int:
        """Width of the vectors."""

    @property
    def device(self) -> str:
        """The device that searches: cpu, cuda, or milvus for a server."""

    @property
    def exact(self) -> bool:
        """Whether a query is compared with every vector in float32, so that nothing is missed."""

    @property
    def refine_factor(self) -> float:
        """How many times k candidates are worth ranking by their true vectors; 1 for an exact index."""

    def search(
        self, queries: Float32, n_candidates: int, options: SearchOptions = DEFAULT_OPTIONS
    ) -> tuple[Float32, Int64]:
        """Scores and positions, both [n_queries, n_candidates], best first; position -1 where nothing was found.

        Raises:
            UnavailableError: a server that holds the index is gone.
        """

    def check_options(self, options: SearchOptions) -> None:
        """Check the parameters of a search.

        Raises:
            InvalidInputError: this kind of index has no such parameter, or it is out of limits; the field is named.
        """

    def close(self) -> None:
        """Release memory and connections. No search may follow."""


class VectorSource(Protocol):
    """The passage vectors of one version of a knowledge base."""

    @property
    def size(self) -> int:
        """Number of vectors."""

    @property
    def dimension(self) -> int:
        """Width of the vectors."""

    @property
    def array(self) -> Float32 | None:
        """All vectors [size, dim] where they lie in memory as float32, never to change; None where they do not."""

    def vectors(self, positions: Int64) -> Float32:
        """The vectors at these positions, [n_positions, dim], in this order."""

    def vector_blocks(self) -> Iterator[Float32]:
        """All vectors in order of position, as blocks [n_rows, dim]."""
