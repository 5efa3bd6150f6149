"""Exact search for one query that reads a quarter of the memory: 8-bit codes choose, the vectors themselves decide.

Each vector x of a Flat index is held a second time as mean + step * code, with one byte for each of its values. A
query q becomes whole numbers w of that size: step * q = unit * w + rest. Then

    q · x = q · mean + unit (w · code) + rest · code + (step * q) · ((x - mean) / step - code),

whose last two parts are unknown, but no larger than |rest| |code| and |step * q| |(x - mean) / step - code| (Cauchy
and Schwarz), and the longest code of all vectors and the largest last factor are known. So where the n-th best true
score among the vectors that the codes choose is above what any other vector can have, these are the n best of all.
Where it is not, nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, isfinite, sqrt
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from retriever_svc.ranking import MAX_CANDIDATES, ROUNDING
from retriever_svc.types import Float32, Int64

native: Any = faiss  # its stub lacks some classes
LEAST_VECTORS = 4096  # with fewer, all are compared as fast
FAST_HERE = "AVX2" in faiss.get_compile_options()  # FAISS compares codes by whole numbers on x86 alone
FEWEST_CHOSEN = 64
CHOSEN_PART = 1 / 32  # of all vectors, at most: they are read at random
MOST_SKIPPED = 1023  # queries that are not tried after many that failed
BLOCK_VALUES = 2**18  # taken at a time: what stays in a core's cache
LARGEST_CODE = 127
TINY = 1e-18  # squares of what is smaller are lost in float32


class CodeScan:
    """Codes of the vectors of a Flat index; searched by one thread at a time.

    How many it chooses grows as queries need more. Where the most are not enough it rests, for longer each time.
    """

    def __init__(self, index: Any) -> None:
        """Make the codes of a filled `faiss.IndexFlat`, whose memory is read from then on.

        Raises RuntimeError, as FAISS does, when builds are interrupted.
        """
        self._index = index  # owns what the vectors are a view of
        n_vectors, dimension = int(index.ntotal), int(index.d)
        self._vectors: Float32 = faiss.rev_swig_ptr(index.get_xb(), n_vectors * dimension).reshape(n_vectors, dimension)
        self._codes, codes = _quantizer(n_vectors, dimension)
        self._farthest = self._longest_code = 0.0
        with np.errstate(over="ignore", invalid="ignore"):  # vectors so long that their products are not finite
            self._mean, reach = self._extent()
            self._longest = 2 * _longest(np.stack([reach, self._mean]))  # no vector is longer, nor what its code says
            self._step: Float32 = np.maximum(reach / np.float32(LARGEST_CODE), np.float32(TINY))
            start, room = 0, np.empty((2, _block_rows(dimension), dimension), np.float32)
            for block in self._blocks():
                codes[start : start + len(block)] = self._encode(block, room[:, : len(block)])
                start += len(block)
        self._n_chosen = FEWEST_CHOSEN
        most = max(FEWEST_CHOSEN, min(MAX_CANDIDATES, int(CHOSEN_PART * n_vectors)))
        self._most_chosen = min(most, n_vectors)
        if not (isfinite(self._farthest) and TINY < self._longest < inf):
            self._most_chosen = 0  # never sure
        self._skipped = self._skip = 0

    def search(self, queries: Float32, n_wanted: int) -> tuple[Float32, Int64] | None:
        """Scores and positions, both [n_queries, n_wanted], best first; None where it is not sure of all of them."""
        scores = np.empty((len(queries), n_wanted), np.float32)
        positions = np.empty((len(queries), n_wanted), np.int64)
        with np.errstate(over="ignore", invalid="ignore"):  # of what is not finite it is not sure
            for row, query in enumerate(queries):
                nearest = self._search_one(query, n_wanted)
                if nearest is None:
                    return None
                scores[row], positions[row] = nearest
        return scores, positions

    def weigh(self, query: Float32) -> tuple[Float32, float, float] | None:
        """The query in whole numbers w [dim], their unit, and what no true score exceeds unit (w · code) by.

        None where these cannot be told in float32.
        """
        length = sqrt(query.dot(query))
        weighted = query * self._step
        unit = float(np.abs(weighted).max()) / LARGEST_CODE
        if not (TINY < length < inf and unit > TINY):
            return None
        whole = np.rint(weighted / np.float32(unit))
        rest = weighted - whole * np.float32(unit)
        left_out = self._farthest * sqrt(weighted.dot(weighted)) + self._longest_code * sqrt(rest.dot(rest))
        return whole, unit, float(self._mean.dot(query)) + left_out + ROUNDING * self._longest * length

    def _search_one(self, query: Float32, n_wanted: int) -> tuple[Float32, Int64] | None:
        n_chosen = max(self._n_chosen, 2 * n_wanted)
        if self._skip or n_chosen > self._most_chosen:
            self._skip = max(0, self._skip - 1)
            return None
        weighed = self.weigh(query)
        if weighed is None:
            return None
        whole, unit, most_more = weighed
        scores, chosen = self._codes.search(whole[np.newaxis], n_chosen)
        true = self._vectors[chosen[0]].dot(query)
        best = (-true).argsort(kind="stable")[:n_wanted]
        if not true[best[-1]] > unit * float(scores[0, -1]) + most_more:  # nor if one of them is not a number
            self._failed()
            return None
        self._skipped = 0
        return true[best], chosen[0][best]

    def _failed(self) -> None:
        """More are chosen the next time; if there were the most already, the next queries are not tried."""
        if self._n_chosen < self._most_chosen:
            self._n_chosen = min(2 * self._n_chosen, self._most_chosen)
        else:
            self._skipped = min(2 * self._skipped + 1, MOST_SKIPPED)
            self._skip = self._skipped

    def _extent(self) -> tuple[Float32, Float32]:
        """The mean of all vectors and how far they reach from it, both [dim]."""
        total = np.zeros(self._vectors.shape[1])
        lowest, highest = self._vectors[0].copy(), self._vectors[0].copy()
        for block in self._blocks():
            total += block.sum(0)
            np.minimum(lowest, block.min(0), out=lowest)
            np.maximum(highest, block.max(0), out=highest)
        mean: Float32 = (total / len(self._vectors)).astype(np.float32)
        return mean, np.maximum(highest - mean, mean - lowest)

    def _encode(self, block: Float32, room: Float32) -> Float32:
        """The bytes of some vectors [n_rows, dim], whose distance from them is noted; `room` is two such arrays."""
        scaled: Float32 = room[0]
        codes: Float32 = room[1]
        np.subtract(block, self._mean, out=scaled)
        scaled /= self._step
        np.rint(scaled, out=codes)
        scaled -= codes
        off = _longest(scaled) * (1 + ROUNDING) + ROUNDING * LARGEST_CODE
        self._farthest = float(np.maximum(self._farthest, off))  # what is not a number stays so
        self._longest_code = max(self._longest_code, _longest(codes))
        codes += LARGEST_CODE + 1
        return codes

    def _blocks(self) -> Iterator[Float32]:
        n_rows = _block_rows(self._vectors.shape[1])
        for start in range(0, len(self._vectors), n_rows):
            native.InterruptCallback.check()
            yield self._vectors[start : start + n_rows]


def _block_rows(dimension: int) -> int:
    return max(1, BLOCK_VALUES // dimension)


def _longest(vectors: Float32) -> float:
    """The length of the longest."""
    return sqrt(np.einsum("ij,ij->i", vectors, vectors).max())


def _quantizer(n_vectors: int, dimension: int) -> tuple[Any, NDArray[np.uint8]]:
    """An index that compares whole numbers with whole numbers, and its bytes [n_vectors, dim] to be filled in."""
    kind = faiss.ScalarQuantizer.QT_8bit_direct_signed
    index = native.IndexScalarQuantizer(dimension, kind, faiss.METRIC_INNER_PRODUCT)
    index.codes.resize(n_vectors * dimension)
    index.ntotal = n_vectors
    return index, faiss.rev_swig_ptr(index.codes.data(), n_vectors * dimension).reshape(n_vectors, dimension)
