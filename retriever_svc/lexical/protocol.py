"""What the searcher asks of an index of texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retriever_svc.types import Float32, Int64

Allowed: TypeAlias = Callable[[Int64], NDArray[np.bool_]]  # of row ids, which of them may be found


class TextIndex(Protocol):
    """Rows by what their texts hold. Safe to search from several threads."""

    @property
    def size(self) -> int:
        """The rows that can be found."""

    def search(self, query: str, k: int, allowed: Allowed | None = None) -> tuple[Int64, Float32]:
        """Ids and scores of the k best rows that match at all, best first, ties by id."""

    def scores(self, query: str, row_ids: Int64) -> Float32:
        """The scores of given rows, [n_row_ids], the same as `search` gives them; 0 for rows that do not match."""
