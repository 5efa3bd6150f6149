"""Limits on requests, and the checks that need nothing but the request and them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ragserve.arguments import check_range
from ragserve.errors import FailedPreconditionError, InvalidInputError
from ragserve.passage_rules import (
    MAX_PASSAGE_BYTES,
    MAX_TEXT_BYTES,
    PassageLimits,
    passage_problem,
    row_problem,
    size_problem,
)
from ragserve.printable import counted
from retriever_svc.filters import check_filter
from retriever_svc.index import SearchOptions
from retriever_svc.kinds import LookupOptions, SearchKind, require_words
from retriever_svc.live.snapshot import Snapshot
from retriever_svc.splitting import Cut, chunk_parent, split_passage
from retriever_svc.types import LARGEST, NewPassage, Passage, Query, usable_rows


@dataclass(frozen=True)
class RequestLimits:
    """The most that a request may ask for; each is documented in `RetrieverSettings`."""

    max_k: int = 100
    max_batch_queries: int = 64
    max_query_characters: int = 10_000
    max_upsert_passages: int = 100_000
    max_passage_bytes: int = MAX_PASSAGE_BYTES
    max_text_bytes: int = MAX_TEXT_BYTES
    max_stream_requests: int = 256
    max_message_bytes: int = 64 * 2**20

    @property
    def passage(self) -> PassageLimits:
        """The largest row and passage of an upsert."""
        return PassageLimits(self.max_passage_bytes, self.max_text_bytes)


def require_passages(snapshot: Snapshot) -> None:
    """Raises FailedPreconditionError for a version in which nothing can be found."""
    if not snapshot.size:
        raise FailedPreconditionError(
            f"The knowledge base holds no passages in version {snapshot.version}. Add some with `ragserve kb add`.",
            field="knowledge",
        )


def check_k(k: int, n_passages: int, limits: RequestLimits) -> None:
    """Raises InvalidInputError unless k is between 1 and what there is and may be asked for."""
    most, limit = _most(n_passages, limits)
    check_range("k", k, 1, most, why=limit)


def fitting_k(k: int, n_passages: int, limits: RequestLimits) -> tuple[int, tuple[str, ...]]:
    """The k to use where the caller did not choose it: k, or the largest possible one with a warning."""
    most, limit = _most(n_passages, limits)
    if k <= most:
        return k, ()
    return most, (f"{limit[0].upper()}{limit[1:]}; this request uses {most} instead of {k}.",)


def _most(n_passages: int, limits: RequestLimits) -> tuple[int, str]:
    """The largest k, and what limits it."""
    if n_passages <= limits.max_k:
        return n_passages, f"the knowledge base has {counted(n_passages, 'passage')}"
    return limits.max_k, f"the retriever finds at most {counted(limits.max_k, 'passage')} (max_k)"


def check_queries(queries: Sequence[Query], dimension: int, limits: RequestLimits) -> None:
    """Raises InvalidInputError for the first query that cannot be searched for."""
    if not queries:
        raise InvalidInputError("queries", "queries is empty: give at least one query")
    if len(queries) > limits.max_batch_queries:
        raise InvalidInputError(
            "queries",
            f"queries has {len(queries)} entries; at most {limits.max_batch_queries} go into one request "
            "(max_batch_queries)",
        )
    for number, query in enumerate(queries):
        if query.vector is None:
            _check_text(f"queries[{number}].text", query.text, limits.max_query_characters)
        else:
            _check_vector(f"queries[{number}].vector", query.vector, dimension)


def check_options(options: LookupOptions, snapshot: Snapshot, queries: Sequence[Query]) -> None:
    """Checks the options of a request against what is loaded.

    Raises:
        InvalidInputError: a filter says nothing, the index does not have a parameter, a weight is no part, or words are
            wanted of a query that is a vector.
        FailedPreconditionError: words are to be searched, and their index is not held.
    """
    check_filter(options.filter)
    snapshot.base.index.check_options(SearchOptions(None, options.nprobe, options.ef_search))
    check_range("options.lexical_weight", options.lexical_weight, 0, 1)
    if options.kind is SearchKind.DENSE:
        return
    require_words(snapshot)
    for number, query in enumerate(queries):
        if query.vector is not None:
            field = f"queries[{number}].vector"
            raise InvalidInputError(field, f"{field} has no words, and options.kind {options.kind.value!r} needs them")


def check_new_passages(
    passages: Sequence[NewPassage],
    first: int,
    seen: set[str],
    dimension: int,
    limits: RequestLimits,
    *,
    split: bool = False,
) -> None:
    """Raises InvalidInputError for the first passage that cannot be stored.

    They are counted from `first`, and `seen` holds the ids of those before them; these ids are added to it. `split`:
    texts without vectors are split before they are stored, and their parts are checked then.
    """
    if first + len(passages) > limits.max_upsert_passages:
        raise InvalidInputError(
            "passages",
            f"passages has {first + len(passages)} entries or more; at most {limits.max_upsert_passages} go into one "
            "commit (max_upsert_passages). Send them in several calls",
        )
    for number, new in enumerate(passages, start=first):
        field = f"passages[{number}]"
        find_problem = row_problem if split and new.vector is None else passage_problem
        one = new.passage
        problem = find_problem(one.id, one.title, one.text, one.metadata_json, limits.passage)
        if problem is not None:
            name = f"{field}.passage.{problem.column}"
            raise InvalidInputError(name, f"{name} {problem.reason}")
        if new.passage.id in seen:
            raise InvalidInputError(
                f"{field}.passage.id", f"{field}.passage.id is {new.passage.id!r} for a second time"
            )
        seen.add(new.passage.id)
        if new.vector is not None:
            _check_vector(f"{field}.vector", new.vector, dimension)


def split_passages(passages: Sequence[NewPassage], cut: Cut | None, limits: PassageLimits) -> list[list[NewPassage]]:
    """The chunks of each passage; one with a vector stays whole.

    Raises:
        InvalidInputError: a chunk is too large, cannot be encoded, or has the id of another passage.
    """
    first: dict[str, int] = {}
    found = []
    for number, new in enumerate(passages):
        field = f"passages[{number}].passage"
        chunks = chunks_of(number, new, cut)
        for chunk in chunks:
            problem = size_problem(chunk.id, chunk.title, chunk.text, chunk.metadata_json, limits)
            if problem is not None:
                raise InvalidInputError(f"{field}.{problem.column}", f"{field}.{problem.column} {problem.reason}")
        for name in {new.passage.id, *(chunk.id for chunk in chunks)}:
            if first.setdefault(name, number) != number:
                raise InvalidInputError(f"{field}.id", f"{field}.id is {name!r}, as in passages[{first[name]}]")
        found.append([new if chunk is new.passage else NewPassage(chunk) for chunk in chunks])
    _refuse_names_of_chunks([new.passage.id for new in passages])
    return found


def chunks_of(number: int, new: NewPassage, cut: Cut | None) -> list[Passage]:
    """What a passage of a request becomes. Raises InvalidInputError if a text of it cannot be encoded."""
    if new.vector is not None:
        return [new.passage]
    try:
        return split_passage(new.passage, cut)
    except InvalidInputError as error:
        field = f"passages[{number}].passage.{error.field}"
        raise InvalidInputError(field, f"{field} {error.message}") from error


def _refuse_names_of_chunks(ids: Sequence[str]) -> None:
    """Raises InvalidInputError for an id ID#N beside ID: while texts are split it names a chunk of ID."""
    known = set(ids)
    for number, identifier in enumerate(ids):
        parent = chunk_parent(identifier)
        if parent in known:
            field = f"passages[{number}].passage.id"
            raise InvalidInputError(field, f"{field} is {identifier!r}, which names a part of {parent!r}: rename one")


def check_ids(ids: Sequence[str], limits: RequestLimits) -> None:
    """Raises InvalidInputError unless there are ids, not too many, and none is empty."""
    if not ids:
        raise InvalidInputError("ids", "ids is empty: give at least one id")
    if len(ids) > limits.max_upsert_passages:
        raise InvalidInputError(
            "ids", f"ids has {len(ids)} entries; it may have {limits.max_upsert_passages} (max_upsert_passages)"
        )
    for number, identifier in enumerate(ids):
        if not identifier:
            raise InvalidInputError(f"ids[{number}]", f"ids[{number}] is empty")


def _check_text(field: str, text: str, max_characters: int) -> None:
    if not text.strip():
        raise InvalidInputError(field, f"{field} is empty: ask something")
    if len(text) > max_characters:
        raise InvalidInputError(
            field, f"{field} has {len(text)} characters; it may have {max_characters} (max_query_characters)"
        )


def _check_vector(field: str, vector: np.ndarray, dimension: int) -> None:
    if vector.shape != (dimension,):
        raise InvalidInputError(
            field, f"{field} has {counted(vector.size, 'value')}; the index has vectors of {dimension}"
        )
    if not usable_rows(vector[None])[0]:
        raise InvalidInputError(field, f"{field} holds a value that is not finite, or beyond {LARGEST:g}")
