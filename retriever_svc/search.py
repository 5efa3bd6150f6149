"""Search a knowledge base in this process, without a server (`ragserve kb search`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ragserve.errors import InvalidInputError
from retriever_svc.kinds import DEFAULT_OPTIONS, Lookup, LookupOptions
from retriever_svc.loading import RetrievalOptions, load_searcher, load_snapshot
from retriever_svc.requests import check_options
from retriever_svc.types import Hit, Query


def search_offline(
    model: Path,
    knowledge_base: Path,
    query: str,
    k: int,
    options: RetrievalOptions | None = None,
    lookup: LookupOptions = DEFAULT_OPTIONS,
) -> tuple[Hit, ...]:
    """The k passages nearest to a question, best first; fewer where a filter lets fewer through.

    Raises:
        InvalidInputError: a query that is empty or not text, k not between 1 and the number of passages, or a filter
            that says nothing.
        RagserveError: the model or the knowledge base cannot be loaded (see `loading`).
    """
    if not query.strip():
        raise InvalidInputError("query", "query is empty: ask something")
    try:
        query.encode()
    except UnicodeEncodeError as error:  # a shell passes bytes that are not UTF-8 as lone surrogates
        raise InvalidInputError("query", "query is not UTF-8 text") from error
    options = replace(options or RetrievalOptions(), index_cache=False)
    searcher = load_searcher(model, options)
    snapshot = load_snapshot(model, knowledge_base, options, searcher.encoder.config.dim)
    if not 1 <= k <= snapshot.size:
        raise InvalidInputError("k", f"k is {k}; it must be between 1 and the {snapshot.size} passages there")
    queries = (Query(text=query),)
    check_options(lookup, snapshot, queries)
    ((found,),) = searcher.run([Lookup(queries, k, snapshot, lookup)], lambda _stage, _seconds: None)
    return found.hits
