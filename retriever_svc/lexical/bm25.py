"""BM25 over exactly the live rows of one version of a knowledge base, and its successors after updates.

The score of a row for a question is, over the question's terms (a term asked n times counts n times),

    sum of  log(1 + (N - df + 0.5) / (df + 0.5))  *  tf / (tf + k1 * (1 - b + b * length / average length))

with N the live rows, df those that hold the term, tf how often this row does, and lengths in terms: Lucene's variant
(Robertson and Zaragoza, The Probabilistic Relevance Framework, 2009, without the constant factor k1 + 1). Nothing of
it is stored: a search takes N, df and the average length from the rows that live. So after any updates every score is
the one, to the last bit, of an index made afresh from the same rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from retriever_svc.lexical.analysis import terms_of, words_of
from retriever_svc.lexical.postings import Counts, Int32, Mask, Postings, Texts, build_postings, merge_postings
from retriever_svc.lexical.protocol import Allowed
from retriever_svc.types import Float32, Int64

Float64: TypeAlias = NDArray[np.float64]

MAX_SEGMENTS = 8  # of updates, before they are merged into one
FIRST_CANDIDATES = 256  # of the best rows, asked first whether they are allowed


@dataclass(frozen=True)
class Bm25Parameters:
    """How soon repetitions of a term stop counting, and how much long rows lose. Anserini's values for this task."""

    k1: float = 0.9
    b: float = 0.4


DEFAULT_PARAMETERS = Bm25Parameters()


@dataclass(frozen=True, eq=False)
class _Segment:
    """Rows that came together, and which of them live still."""

    postings: Postings
    live: Mask | None  # [n_rows]; None: all
    n_live: int
    live_length: int  # terms of all live rows

    @classmethod
    def whole(cls, postings: Postings) -> _Segment:
        return cls(postings, None, len(postings.row_ids), int(postings.lengths.sum(dtype=np.int64)))

    def mask(self) -> Mask:
        return np.ones(len(self.postings.row_ids), dtype=np.bool_) if self.live is None else self.live

    def without(self, row_ids: Int64) -> _Segment:
        """The same with these rows dead, those that are here."""
        places, here = self.postings.find(row_ids)
        if not here.any():
            return self
        live = self.mask().copy()
        live[places[here]] = False
        length = int(self.postings.lengths[live].sum(dtype=np.int64))
        return replace(self, live=live, n_live=int(np.count_nonzero(live)), live_length=length)

    def find(self, row_ids: Int64) -> tuple[Int64, Mask]:
        """Where each row is, and whether it is here and lives."""
        places, here = self.postings.find(row_ids)
        if self.live is not None:
            here &= self.live[places]
        return places, here

    def of(self, term: str) -> tuple[Int32, Counts]:
        """The live rows that hold a term, as places, and how often each does."""
        places, counts = self.postings.of(term)
        if self.live is None:
            return places, counts
        kept = self.live[places]
        return places[kept], counts[kept]


@dataclass(frozen=True, eq=False)
class _Asked:
    """A term of a query."""

    weight: float  # its inverse document frequency times its count in the query
    holders: Sequence[tuple[Int32, Counts]]  # for each segment, the live rows that hold it and how often


class Bm25Index:
    """An immutable index by row id: an update gives another one, which shares the large parts.

    Searches are safe from several threads.
    """

    def __init__(self, segments: Sequence[_Segment], parameters: Bm25Parameters) -> None:
        self._segments = tuple(segments)
        self._parameters = parameters
        self.size = sum(segment.n_live for segment in segments)
        n_terms = sum(segment.live_length for segment in segments)
        self.average_length = n_terms / self.size if n_terms else 1.0

    @classmethod
    def build(cls, blocks: Iterable[Texts], parameters: Bm25Parameters = DEFAULT_PARAMETERS) -> Bm25Index:
        """Index rows given as blocks of ids [n_rows] and texts (see `indexed_text`), in any order, none twice."""
        return cls([_Segment.whole(build_postings(blocks))], parameters)

    @property
    def size_bytes(self) -> int:
        """Memory of the postings and the masks, in bytes; shared with the index that this one was updated from."""
        return sum(
            segment.postings.size_bytes + (0 if segment.live is None else segment.live.nbytes)
            for segment in self._segments
        )

    @property
    def dead_rows(self) -> int:
        """Rows that are in memory though they no longer live."""
        return sum(len(segment.postings.row_ids) for segment in self._segments) - self.size

    @property
    def updated_rows(self) -> int:
        """Live rows that came by updates since the last `compacted`."""
        return sum(segment.n_live for segment in self._segments[1:])

    def updated(self, removed: Int64, row_ids: Int64, texts: Sequence[str]) -> Bm25Index:
        """The index after an update: rows removed, and rows added or, where their id is here already, replaced.

        Costs the counting of the new texts, and a mask of the rows. Call `compacted` when `dead_rows` or `updated_rows`
        have grown to a good part of `size`.
        """
        gone = np.concatenate([np.asarray(removed, np.int64), np.asarray(row_ids, np.int64)])
        segments = [segment.without(gone) for segment in self._segments]
        segments[1:] = [segment for segment in segments[1:] if segment.n_live]
        if len(row_ids):
            segments.append(_Segment.whole(build_postings([(row_ids, texts)])))
        if len(segments) > MAX_SEGMENTS:
            segments[1:] = [_merge(segments[1:])]
        return Bm25Index(segments, self._parameters)

    def compacted(self) -> Bm25Index:
        """The same index without dead rows, in one part: to be made in the background, as no text is read for it."""
        return Bm25Index([_merge(self._segments)], self._parameters)

    def search(self, query: str, k: int, allowed: Allowed | None = None) -> tuple[Int64, Float32]:
        """Ids and scores of the k best rows that hold a term of the query, best first, ties by id.

        `allowed` is asked for as many of the best rows as it takes. It does not change their scores. Fewer than k, or
        none, come back when no more rows hold a term.
        """
        ids, scores = self._score_all(query)
        wanted = max(k, FIRST_CANDIDATES) if allowed else k
        while True:
            chosen = _best(scores, wanted)
            found_ids, found_scores = ids[chosen], scores[chosen]
            if allowed:
                kept = allowed(found_ids)
                found_ids, found_scores = found_ids[kept], found_scores[kept]
            if len(found_ids) >= k or len(chosen) == len(ids):
                order = np.lexsort((found_ids, -found_scores))[:k]
                return found_ids[order], found_scores[order]
            wanted *= 8

    def scores(self, query: str, row_ids: Int64) -> Float32:
        """The scores of given rows, [n_row_ids]; 0 where a row holds no term of the query, or is not here."""
        total = np.zeros(len(row_ids), dtype=np.float64)
        found = [segment.find(row_ids) for segment in self._segments]
        for asked in self._look_up(query):
            for segment, (wanted, here), (places, counts) in zip(self._segments, found, asked.holders, strict=True):
                if len(places):
                    at = np.minimum(np.searchsorted(places, wanted), len(places) - 1)
                    held = np.flatnonzero(here & (places[at] == wanted))
                    total[held] += asked.weight * self._saturation(segment, wanted[held], counts[at[held]])
        return total.astype(np.float32)

    def _score_all(self, query: str) -> tuple[Int64, Float32]:
        """Ids and scores of every row that holds a term."""
        asked = self._look_up(query)
        ids, found = [np.empty(0, np.int64)], [np.empty(0, np.float32)]
        for number, segment in enumerate(self._segments):
            scores = np.zeros(len(segment.postings.row_ids), dtype=np.float64)
            for term in asked:
                places, counts = term.holders[number]
                wide = places.astype(np.int64)  # what numpy's fast paths want, here and below
                np.add.at(scores, wide, term.weight * self._saturation(segment, wide, counts))
            held = np.flatnonzero(scores > 0)
            ids.append(segment.postings.row_ids[held])
            found.append(scores[held].astype(np.float32))
        return np.concatenate(ids), np.concatenate(found)

    def _look_up(self, query: str) -> list[_Asked]:
        """The query's terms that some row holds, in the order of the terms, which makes sums reproducible."""
        asked = []
        for term, times in sorted(Counter(terms_of(words_of(query))).items()):
            holders = [segment.of(term) for segment in self._segments]
            df = sum(len(places) for places, _ in holders)
            if df:
                asked.append(_Asked(times * math.log(1 + (self.size - df + 0.5) / (df + 0.5)), holders))
        return asked

    def _saturation(self, segment: _Segment, places: NDArray[np.integer], counts: Counts) -> Float64:
        """The factor of the term's frequency in the formula above, [n_places]."""
        k1, b = self._parameters.k1, self._parameters.b
        half = k1 * (1 - b) + (k1 * b / self.average_length) * segment.postings.lengths[places]
        return np.asarray(counts / (counts + half))


def indexed_text(title: str, text: str) -> str:
    """What of a passage is searched: its title, then its text."""
    return f"{title} {text}"


def _merge(segments: Sequence[_Segment]) -> _Segment:
    return _Segment.whole(merge_postings([(segment.postings, segment.mask()) for segment in segments]))


def _best(scores: Float32, k: int) -> Int64:
    """Places of the k largest scores, and of all that equal the k-th."""
    if k >= len(scores):
        return np.arange(len(scores))
    smallest = scores[np.argpartition(-scores, k - 1)[:k]].min()
    return np.flatnonzero(scores >= smallest)
