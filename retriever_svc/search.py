"""Search a knowledge base in this process, without a server (`ragserve kb search`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ragserve.checkpoint import load_manifest
from ragserve.errors import InvalidInputError, NotFoundError
from ragserve.filters import DEFAULT_K
from ragserve.nothing_found import Names, explanation
from retriever_svc.kinds import DEFAULT_OPTIONS, Lookup, LookupOptions
from retriever_svc.loading import RetrievalOptions, load_searcher, load_snapshot
from retriever_svc.requests import RequestLimits, check_k, check_options, fitting_k, require_passages
from retriever_svc.types import Hit, Query, unread_queries

NAMES = Names("query", "options.filter", "options.kind")


def search_offline(
    model: Path,
    knowledge_base: Path,
    query: str,
    k: int | None,
    options: RetrievalOptions | None = None,
    lookup: LookupOptions = DEFAULT_OPTIONS,
) -> tuple[tuple[Hit, ...], tuple[str, ...]]:
    """The k passages nearest to a question, best first, and warnings; fewer where a filter lets fewer through.

    k: None for DEFAULT_K, or as many as there are.

    Raises:
        InvalidInputError: a query that is empty or not text, k not between 1 and the number of passages, or a filter
            that says nothing.
        FailedPreconditionError: the knowledge base holds no passages.
        NotFoundError: no passage matches the filter, or contains a word of the query.
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
    require_passages(snapshot)
    limits = RequestLimits(max_k=snapshot.size)
    wanted, warnings = fitting_k(DEFAULT_K, snapshot.size, limits) if k is None else (k, ())
    check_k(wanted, snapshot.size, limits)
    queries = (Query(text=query),)
    check_options(lookup, snapshot, queries)
    ((found,),) = searcher.run([Lookup(queries, wanted, snapshot, lookup)], lambda _stage, _seconds: None)
    if found.nothing_found:
        reason = found.nothing_found
        message = explanation(reason, snapshot.version, NAMES.filter, NAMES.kind, found.filter_keys)
        raise NotFoundError(message, field=NAMES.blamed(reason))
    ignored = load_manifest(model).encoder_warnings
    return found.hits, (*warnings, *unread_queries([found], "QUERY"), *ignored)
