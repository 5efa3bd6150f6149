"""An inverted index of some rows: for each term, the rows that hold it, and how often."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from retriever_svc.lexical.analysis import term_of, words_of
from retriever_svc.types import Int64

Int32: TypeAlias = NDArray[np.int32]
Counts: TypeAlias = NDArray[np.unsignedinteger[Any]]  # of the narrowest type that holds the largest
Mask: TypeAlias = NDArray[np.bool_]
Texts: TypeAlias = tuple[Int64, Sequence[str]]  # ids of rows, and their texts

BLOCK_ROWS = 65_536  # rows counted together


@dataclass(frozen=True, eq=False)
class Postings:
    """Term t stands in the rows at `places[starts[t] : starts[t + 1]]`, as often as `counts` says there."""

    row_ids: Int64  # [n_rows], ascending
    lengths: Int32  # [n_rows], in terms
    terms: pa.LargeStringArray  # [n_terms], ascending
    starts: Int64  # [n_terms + 1]
    places: Int32  # [n_postings], into row_ids, ascending for each term
    counts: Counts  # [n_postings]

    def of(self, term: str) -> tuple[Int32, Counts]:
        """The rows that hold a term, as ascending places in `row_ids`, and how often each does."""
        number = bisect_left(self.terms, term, key=lambda found: found.as_py())
        there = number < len(self.terms) and self.terms[number].as_py() == term
        held = slice(int(self.starts[number]), int(self.starts[number + 1])) if there else slice(0)
        return self.places[held], self.counts[held]

    def find(self, row_ids: Int64) -> tuple[Int64, Mask]:
        """Where each row is, and whether it is there at all (else its place means nothing)."""
        places = np.minimum(np.searchsorted(self.row_ids, row_ids), max(len(self.row_ids) - 1, 0))
        if not len(self.row_ids):
            return places, np.zeros(len(row_ids), dtype=np.bool_)
        return places, self.row_ids[places] == row_ids

    @property
    def size_bytes(self) -> int:
        """Memory held, in bytes."""
        arrays = (self.row_ids, self.lengths, self.terms, self.starts, self.places, self.counts)
        return sum(int(part.nbytes) for part in arrays)


@dataclass(frozen=True, eq=False)
class _Part:
    """Postings as triples, ordered by term and place."""

    terms: Int32
    places: Int32
    counts: Counts


class _Terms(dict[str, int]):
    """The number of each word's term, first seen first; -1 for stop words."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers: dict[str, int] = {}

    def __missing__(self, word: str) -> int:
        term = term_of(word)
        self[word] = number = -1 if term is None else self.numbers.setdefault(term, len(self.numbers))
        return number


def build_postings(blocks: Iterable[Texts]) -> Postings:
    """Count the terms of rows that come in any order, no row twice; small blocks are fine."""
    vocabulary, parts, ids, lengths = _Terms(), [], [np.empty(0, np.int64)], [np.empty(0, np.int32)]
    n_rows = 0
    for row_ids, texts in blocks:
        for start in range(0, len(texts), BLOCK_ROWS):
            part, n_terms = _count(vocabulary, texts[start : start + BLOCK_ROWS], n_rows)
            parts.append(part)
            lengths.append(n_terms)
            n_rows += len(n_terms)
        ids.append(np.asarray(row_ids, dtype=np.int64))
    terms = pa.array(list(vocabulary.numbers), pa.large_string())
    starts, places, counts = _join(parts, len(terms))
    order = pc.array_sort_indices(terms)
    starts, places, counts = _reorder(order.to_numpy(), starts, places, counts)
    return _sort_rows(Postings(np.concatenate(ids), np.concatenate(lengths), terms.take(order), starts, places, counts))


def merge_postings(parts: Sequence[tuple[Postings, Mask]]) -> Postings:
    """One index of the rows that the masks keep; no row may be kept twice."""
    terms = pc.unique(pa.chunked_array([postings.terms for postings, _ in parts], pa.large_string()))
    terms = terms.take(pc.array_sort_indices(terms))
    triples, first = [], 0
    for postings, kept in parts:
        numbers = pc.index_in(postings.terms, value_set=terms).to_numpy().astype(np.int32)
        held = kept[postings.places]
        renumbered = np.cumsum(kept, dtype=np.int32) + np.int32(first - 1)
        triples.append(
            _Part(
                np.repeat(numbers, np.diff(postings.starts))[held],
                renumbered[postings.places[held]],
                postings.counts[held],
            )
        )
        first += int(np.count_nonzero(kept))
    starts, places, counts = _join(triples, len(terms))
    used = np.diff(starts) > 0
    return _sort_rows(
        Postings(
            np.concatenate([postings.row_ids[kept] for postings, kept in parts]),
            np.concatenate([postings.lengths[kept] for postings, kept in parts]),
            terms.filter(pa.array(used)),
            np.append(starts[:-1][used], starts[-1]),
            places,
            counts,
        )
    )


def _count(vocabulary: _Terms, texts: Sequence[str], first_place: int) -> tuple[_Part, Int32]:
    """The postings of a block, and the number of terms of each of its rows."""
    flat, ends = array("i"), np.zeros(len(texts) + 1, dtype=np.int64)
    for row, text in enumerate(texts):
        flat.extend(map(vocabulary.__getitem__, words_of(text)))
        ends[row + 1] = len(flat)
    numbers = np.frombuffer(flat, dtype=np.int32) if flat else np.empty(0, np.int32)
    rows = np.repeat(np.arange(len(texts), dtype=np.int64), np.diff(ends))
    known = numbers >= 0
    lengths = np.bincount(rows[known], minlength=len(texts)).astype(np.int32)
    keys, counts = np.unique((numbers[known].astype(np.int64) << 32) | rows[known], return_counts=True)
    places = (keys & 0xFFFFFFFF).astype(np.int32) + np.int32(first_place)
    return _Part((keys >> 32).astype(np.int32), places, _narrow(counts)), lengths


def _narrow(counts: NDArray[Any]) -> Counts:
    return counts.astype(np.min_scalar_type(int(counts.max(initial=0))))


def _join(parts: Sequence[_Part], n_terms: int) -> tuple[Int64, Int32, Counts]:
    """Starts, places and counts of all parts, whose places ascend from part to part."""
    sizes = [np.bincount(part.terms, minlength=n_terms) for part in parts]
    starts = np.concatenate([[0], np.cumsum(sum(sizes, np.zeros(n_terms, np.int64)))]).astype(np.int64)
    kind = np.result_type(np.uint8, *(part.counts.dtype for part in parts))
    places, counts = np.empty(starts[-1], np.int32), np.empty(starts[-1], kind)
    free = starts[:-1].copy()  # where the next posting of each term goes
    for part, size in zip(parts, sizes, strict=True):
        own_starts = np.cumsum(size) - size
        target = (free - own_starts)[part.terms] + np.arange(len(part.terms))
        places[target] = part.places
        counts[target] = part.counts
        free += size
    return starts, places, counts


def _reorder(order: NDArray[Any], starts: Int64, places: Int32, counts: Counts) -> tuple[Int64, Int32, Counts]:
    """The postings with term `order[t]` as term t."""
    sizes = np.diff(starts)[order]
    moved = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    source = np.repeat(starts[:-1][order] - moved[:-1], sizes) + np.arange(len(places))
    return moved, places[source], counts[source]


def _sort_rows(found: Postings) -> Postings:
    """The same with ascending row ids."""
    if np.all(np.diff(found.row_ids) > 0):
        return found
    order = np.argsort(found.row_ids)
    rank = np.empty(len(order), dtype=np.int32)
    rank[order] = np.arange(len(order), dtype=np.int32)
    terms = np.repeat(np.arange(len(found.terms), dtype=np.int64), np.diff(found.starts))
    places = rank[found.places]
    by_term_and_place = np.argsort((terms << 32) | places)
    return Postings(
        found.row_ids[order],
        found.lengths[order],
        found.terms,
        found.starts,
        places[by_term_and_place],
        found.counts[by_term_and_place],
    )
