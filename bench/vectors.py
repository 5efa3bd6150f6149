"""Synthetic clustered vectors, queries near them, and what an exact search finds: made once, kept in files.

Vectors of texts lie near surfaces of few dimensions, in clusters. So: centres on the sphere, each with a Gaussian patch
of 16 directions around it and a little noise in all others, normalized, in random order. A query is a vector moved a
little on its own patch. The number of clusters grows with the size (500 vectors each: 2,000 clusters of a million), so
that a query has as many near neighbours at any size.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import CACHE
from retriever_svc.types import Float32, Int64

SEED = 20251123
CLUSTER_ROWS = 500
PATCH_DIRECTIONS = 16
PATCH_SIZE = 0.6  # length of a step on the patch, of a centre's length
NOISE_SIZE = 0.15  # length of the noise in all directions
QUERY_STEP = 0.5  # of a query away from its vector, of the patch's size
BLOCK_ROWS = 16_384
N_NEIGHBOURS = 10
MARGIN = 32  # candidates in float32 beyond those, whose order float64 decides


@dataclass(frozen=True)
class Synthetic:
    """`size` vectors [size, dim] in a file that is mapped, which makes it a `VectorSource` of the retriever."""

    size: int
    dimension: int = 768
    n_queries: int = 1_000

    def make(self) -> None:
        """Write what is not there yet: the vectors, the queries and their exact neighbours."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self._file("vectors").exists():
            self._make_vectors()
        if not self._file("queries").exists():
            self._save("queries", self._make_queries())
        if not self._file("neighbours").exists():
            self._save("neighbours", self._exact_neighbours(N_NEIGHBOURS))

    @property
    def array(self) -> None:
        """None: an index shall hold its vectors itself, as one that is read from a file does."""

    def vectors(self, positions: Int64) -> Float32:
        """The vectors at these positions, [n_positions, dim], in this order."""
        return np.asarray(self.mapped[positions])

    def vector_blocks(self) -> Iterator[Float32]:
        """All vectors in order, as blocks [n_rows, dim]."""
        for start in range(0, self.size, BLOCK_ROWS):
            yield np.ascontiguousarray(self.mapped[start : start + BLOCK_ROWS])

    @cached_property
    def mapped(self) -> Float32:
        """All vectors, float32 [size, dim], in the page cache and not in this process's own memory."""
        return np.asarray(np.load(self._file("vectors"), mmap_mode="r"))

    @cached_property
    def queries(self) -> Float32:
        """Queries near vectors drawn at random, float32 [n_queries, dim]."""
        return np.asarray(np.load(self._file("queries")))

    @property
    def neighbours(self) -> Int64:
        """Positions of the ten vectors with the largest inner product, in float64, [n_queries, 10]."""
        return np.asarray(np.load(self._file("neighbours")))

    @property
    def directory(self) -> Path:
        """Where the files are."""
        return CACHE / f"vectors-{self.size}-{self.dimension}-{self.n_queries}"

    def _file(self, name: str) -> Path:
        return self.directory / f"{name}.npy"

    def _save(self, name: str, array: NDArray[Any]) -> None:
        """Appears whole or not at all."""
        temporary = self._file(f"{name}.tmp")
        np.save(temporary, array)
        temporary.replace(self._file(name))

    def _make_vectors(self) -> None:
        patches, temporary = Patches(self.size, self.dimension), self._file("vectors.tmp")
        shape = (self.size, self.dimension)
        out = np.lib.format.open_memmap(temporary, "w+", np.float32, shape)
        for start in range(0, self.size, BLOCK_ROWS):
            rows = np.arange(start, min(start + BLOCK_ROWS, self.size))
            clusters = patches.clusters[rows]
            rng = np.random.default_rng([SEED, start])
            out[rows[0] : rows[-1] + 1] = patches.moved(patches.centres[clusters], clusters, 1.0, rng)
        out.flush()
        temporary.replace(self._file("vectors"))

    def _make_queries(self) -> Float32:
        patches, rng = Patches(self.size, self.dimension), np.random.default_rng([SEED, 1])
        chosen = rng.integers(0, self.size, self.n_queries)
        return patches.moved(self.vectors(chosen), patches.clusters[chosen], QUERY_STEP, rng)

    def _exact_neighbours(self, k: int) -> Int64:
        """By brute force, without FAISS: candidates by blocks in float32, their order in float64."""
        best, places = np.empty((self.n_queries, 0), np.float32), np.empty((self.n_queries, 0), np.int64)
        for number, block in enumerate(self.vector_blocks()):
            scores = self.queries @ block.T
            rows = np.broadcast_to(np.arange(len(block)) + number * BLOCK_ROWS, scores.shape)
            best, places = np.concatenate([best, scores], 1), np.concatenate([places, rows], 1)
            best, places = largest(best, places, k + MARGIN)
        exact = np.empty((self.n_queries, k), np.int64)
        for row, (query, candidates) in enumerate(zip(self.queries, places, strict=True)):
            scores64 = self.vectors(candidates).astype(np.float64) @ query.astype(np.float64)
            exact[row] = candidates[np.lexsort((candidates, -scores64))[:k]]
        return exact


class Patches:
    """Centres [n_clusters, dim], directions of each patch [n_clusters, n_directions, dim], and clusters [n_rows]."""

    def __init__(self, n_rows: int, dimension: int) -> None:
        rng = np.random.default_rng(SEED)
        n_clusters = max(n_rows // CLUSTER_ROWS, 1)
        self.clusters = rng.integers(0, n_clusters, n_rows)
        self.centres = normalized(rng.standard_normal((n_clusters, dimension), dtype=np.float32))
        directions = rng.standard_normal((n_clusters, PATCH_DIRECTIONS, dimension), dtype=np.float32)
        self._directions = normalized(directions) / np.float32(PATCH_DIRECTIONS**0.5)

    def moved(self, start: Float32, clusters: Int64, step: float, rng: np.random.Generator) -> Float32:
        """Each vector moved by `step` of the size of its cluster's patch, and a little in all directions."""
        steps = step * PATCH_SIZE * rng.standard_normal((len(start), PATCH_DIRECTIONS), dtype=np.float32)
        noise = step * NOISE_SIZE / start.shape[1] ** 0.5
        moved = start + np.float32(noise) * rng.standard_normal(start.shape, dtype=np.float32)
        order = np.argsort(clusters, kind="stable")
        for rows in np.split(order, np.flatnonzero(np.diff(clusters[order])) + 1):
            moved[rows] += steps[rows] @ self._directions[clusters[rows[0]]]
        return normalized(moved)


def largest(scores: Float32, places: Int64, k: int) -> tuple[Float32, Int64]:
    """The k largest scores of each row and their places, in any order."""
    top = np.argpartition(-scores, min(k, scores.shape[1]) - 1, axis=1)[:, :k]
    return np.take_along_axis(scores, top, 1), np.take_along_axis(places, top, 1)


def normalized(vectors: Float32) -> Float32:
    """At length 1, along the last axis."""
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True), dtype=np.float32)
