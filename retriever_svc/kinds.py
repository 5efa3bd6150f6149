"""Kinds of search: by vector, by words (BM25), and hybrids of both (arXiv 2005.11401, section 4.5).

Each kind has a scale: the factor on its scores in the prior, log p(z|x) = log-softmax of scale x score.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from ragserve.errors import FailedPreconditionError
from ragserve.nothing_found import NAMED_KEYS, FilterKeys, NothingFound
from retriever_svc.filters import BOUNDS, Condition, Filter
from retriever_svc.lexical import WEIGHT, Bm25Index
from retriever_svc.lexical.analysis import terms_of, words_of
from retriever_svc.lexical.fusion import Candidates, reciprocal_rank_fusion, weighted_sum
from retriever_svc.live.snapshot import Snapshot, View
from retriever_svc.numerals import number_of
from retriever_svc.ranking import find_nearest, scan_nearest
from retriever_svc.types import Float32, Int64, Query

# Up to this many passages, or this part of them, that a filter lets through, an approximate index is not asked:
# comparing with each is as fast, and finds all.
SCANNED_ROWS = 1_000
SCANNED_PART = 0.01
FUSED_CANDIDATES = 100  # taken from each search of a hybrid, where k is smaller
NO_FILTER = Filter()


class SearchKind(StrEnum):
    """What passages are found by."""

    DENSE = "dense"  # inner product of query and passage vector
    BM25 = "bm25"  # words of the question in title and text
    WEIGHTED = "weighted"  # weighted sum of both as logits of a prior: a geometric mean of the two priors
    RRF = "rrf"  # reciprocal rank fusion of both


@dataclass(frozen=True)
class LookupOptions:
    """Which passages a lookup may find, by what, and how an approximate index searches (0: its own setting)."""

    filter: Filter = NO_FILTER
    nprobe: int = 0
    ef_search: int = 0
    kind: SearchKind = SearchKind.DENSE
    lexical_weight: float = WEIGHT  # part of BM25 in a weighted sum, 0 to 1


DEFAULT_OPTIONS = LookupOptions()


@dataclass(frozen=True)
class Scales:
    """The factor on scores in the prior, for each kind of search."""

    dense: float = 1.0
    bm25: float = 1.0
    rrf: float = 1.0
    weighted: float = 1.0

    def of(self, kind: SearchKind) -> float:
        """The factor of a kind."""
        return float(getattr(self, kind.value))


@dataclass(frozen=True)
class Lookup:
    """The queries of one request, its k, the version that answers it, and options."""

    queries: tuple[Query, ...]
    k: int
    snapshot: Snapshot
    options: LookupOptions = DEFAULT_OPTIONS

    @property
    def characters(self) -> int:
        """Of the longest text to encode; 0 where there is none."""
        if self.options.kind is SearchKind.BM25:
            return 0
        return max((len(query.text) for query in self.queries if query.vector is None), default=0)


Ranked = tuple[Int64, Float32]  # positions and scores, best first


def find(lookup: Lookup, queries: Sequence[Query], vectors: Float32, scales: Scales) -> list[Ranked]:
    """Positions and scores of the k best passages for each query, which has a text, a vector [dim], or both.

    Dense search finds k passages while the filter lets that many through. BM25 finds those that hold a word of the
    question, which may be fewer; the hybrids find at least what dense search does.

    Raises:
        FailedPreconditionError: words are to be searched, and their index is not held (setting `lexical`).
    """
    options = lookup.options
    view = View(lookup.snapshot, options.filter, options.nprobe, options.ef_search)
    if options.kind is SearchKind.DENSE:
        return nearest(view, vectors, lookup.k)
    words = _Words(view)
    if options.kind is SearchKind.BM25:
        return [words.search(query.text, lookup.k) for query in queries]
    depth = max(FUSED_CANDIDATES, lookup.k)
    found = []
    for query, vector, dense in zip(queries, vectors, nearest(view, vectors, depth), strict=True):
        lexical = words.search(query.text, depth)
        if options.kind is SearchKind.RRF:
            rankings = [lookup.snapshot.row_ids(positions) for positions, _ in (dense, lexical)]
            row_ids, scores = reciprocal_rank_fusion(rankings, lookup.k)
        else:
            both = (words.dense(vector, dense, scales.dense), words.lexical(query.text, lexical, scales.bm25))
            row_ids, scores = weighted_sum(*both, options.lexical_weight, lookup.k)
        found.append((lookup.snapshot.locate(row_ids), scores))
    return found


def why_nothing(lookup: Lookup, query: Query) -> NothingFound:
    """Why `find` finds no passage for a query of this lookup."""
    view = View(lookup.snapshot, lookup.options.filter)
    if not view.size:
        return NothingFound.FILTER
    if not terms_of(words_of(query.text)):
        return NothingFound.NO_WORDS
    return NothingFound.WORDS if view.size == lookup.snapshot.size else NothingFound.WORDS_AND_FILTER


def filter_keys(lookup: Lookup) -> FilterKeys:
    """Why nothing matches a filter: keys that no passage has, keys of lists, texts as bounds of numbers."""
    snapshot, conditions = lookup.snapshot, lookup.options.filter.conditions
    known, nested = snapshot.metadata_keys(), snapshot.nested_keys()
    unknown = dict.fromkeys(one.key for one in conditions if one.none_of is None and one.key not in known)
    most = sorted(known, key=lambda key: (-known[key], key))[: NAMED_KEYS + 1]
    with_text = dict.fromkeys(one.key for one in conditions if one.key in known and _has_text_bound(one))
    return FilterKeys(
        tuple(unknown),
        tuple(most),
        tuple(key for key in unknown if key in nested),
        tuple(key for key in with_text if snapshot.only_numbers(key)),
    )


def _has_text_bound(condition: Condition) -> bool:
    """Whether a bound does not read as a number, so that no number is within it."""
    return any((bound := getattr(condition, name)) is not None and number_of(bound) is None for name in BOUNDS)


def nearest(view: View, queries: Float32, k: int) -> list[Ranked]:
    """Positions and scores of the k nearest passages of each query [n_queries, dim] that the view lets through.

    There are never fewer than k while that many are let through: where an approximate index finds too few, or few are
    let through, each of those is compared with the query.
    """
    snapshot = view.snapshot
    wanted = min(k, view.size)
    few = view.size < snapshot.size and view.size <= max(SCANNED_ROWS, SCANNED_PART * snapshot.size)
    if few and not snapshot.base.index.exact:
        return [scan_nearest(view, view.positions(), query, wanted, snapshot.row_ids) for query in queries]
    found = find_nearest(view, view, queries, wanted, snapshot.row_ids, snapshot.base.index.refine_factor)
    for row, (positions, _) in enumerate(found):
        if len(positions) < wanted:
            found[row] = scan_nearest(view, view.positions(), queries[row], wanted, snapshot.row_ids)
    return found


class _Words:
    """The words of a view's passages, and candidates for fusion by row id."""

    def __init__(self, view: View) -> None:
        self._snapshot = view.snapshot
        self._words = require_words(view.snapshot)
        self._allowed: Callable[[Int64], np.ndarray] | None = None
        if view.size < view.snapshot.size:
            self._allowed = lambda row_ids: view.lets_through(self._snapshot.locate(row_ids))

    def search(self, text: str, k: int) -> Ranked:
        """Positions and BM25 scores of the k best passages."""
        row_ids, scores = self._words.search(text, k, self._allowed)
        return self._snapshot.locate(row_ids), scores

    def dense(self, vector: Float32, found: Ranked, scale: float) -> Candidates:
        def scores(row_ids: Int64) -> Float32:
            vectors = self._snapshot.vectors(self._snapshot.locate(row_ids)).astype(np.float64)
            return (vectors @ vector.astype(np.float64)).astype(np.float32)

        return Candidates(self._snapshot.row_ids(found[0]), found[1], scores, scale)

    def lexical(self, text: str, found: Ranked, scale: float) -> Candidates:
        ids = self._snapshot.row_ids(found[0])
        return Candidates(ids, found[1], lambda row_ids: self._words.scores(text, row_ids), scale)


def require_words(snapshot: Snapshot) -> Bm25Index:
    """The index of words. Raises FailedPreconditionError where it is not held."""
    if snapshot.words is None:
        raise FailedPreconditionError(
            "this retriever has no word index: start it with --lexical (so do 'ragserve up', 'demo' and 'quickstart' "
            "with that flag), or search by vector (dense)",
            field="options.kind",
        )
    return snapshot.words
