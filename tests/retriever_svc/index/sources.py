"""Vectors to build indexes from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

BLOCK = 700


@dataclass(frozen=True)
class ArraySource:
    """Vectors held in an array, given in blocks."""

    array: np.ndarray

    @property
    def size(self) -> int:
        return len(self.array)

    @property
    def dimension(self) -> int:
        return int(self.array.shape[1])

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        return self.array[positions]

    def vector_blocks(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self.array), BLOCK):
            yield self.array[start : start + BLOCK]


def clustered(n: int, dimension: int, seed: int = 0, centers: int = 40) -> np.ndarray:
    """Vectors [n, dimension] of about length 1 around common centers, as embeddings lie."""
    middle = np.random.default_rng(1000).normal(size=(centers, dimension))
    rng = np.random.default_rng(seed)
    vectors = middle[rng.integers(centers, size=n)] + rng.normal(size=(n, dimension))
    return (vectors / np.sqrt(2 * dimension)).astype(np.float32)
