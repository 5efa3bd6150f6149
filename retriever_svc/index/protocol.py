"""What the searcher asks of a vector index, and what an index is built from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from retriever_svc.types import Float32, Int64


class Index(Protocol):
    """Finds vectors by inner product. Positions count from 0 in the order of the knowledge base's version."""

    @property
    def size(self) -> int:
        """Number of vectors."""

    @property
    def dimension(self) -> int:
        """Width of the vectors."""

    @property
    def device(self) -> str:
        """The device that searches: cpu or cuda."""

    def search(self, queries: Float32, n_candidates: int) -> tuple[Float32, Int64]:
        """Scores and positions, both [n_queries, n_candidates], best first; position -1 where nothing was found."""


class VectorSource(Protocol):
    """The passage vectors of one version of a knowledge base."""

    @property
    def size(self) -> int:
        """Number of vectors."""

    @property
    def dimension(self) -> int:
        """Width of the vectors."""

    def vectors(self, positions: Int64) -> Float32:
        """The vectors at these positions, [n_positions, dim], in this order."""

    def vector_blocks(self) -> Iterator[Float32]:
        """All vectors in order of position, as blocks [n_rows, dim]."""
