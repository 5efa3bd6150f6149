"""Why a search found nothing, and what to do about it: the retriever finds out, those who asked are told."""

from __future__ import annotations

from enum import StrEnum


class NothingFound(StrEnum):
    """Why a query has no passages."""

    FILTER = "filter"  # no passage matches the filter
    NO_WORDS = "no_words"  # the query has no word that BM25 searches for
    WORDS = "words"  # no passage contains a word of the query
    WORDS_AND_FILTER = "words_and_filter"  # of the passages that match the filter, none contains a word of the query


def explanation(reason: NothingFound, version: int, filter_name: str = "filter", kind_name: str = "kind") -> str:
    """The reason, and what to do. The names are those that the caller knows filter and kind of search by."""
    passage = f"No passage of knowledge version {version}"
    dense = f"set {kind_name} to dense, which needs no common word"
    match reason:
        case NothingFound.FILTER:
            return f"{passage} matches {filter_name}. Remove a condition."
        case NothingFound.NO_WORDS:
            return (
                "The question has no word that BM25 searches for, only signs or words such as 'the'. Ask with other "
                f"words, or {dense}."
            )
        case NothingFound.WORDS:
            return f"{passage} contains a word of the question. Ask with other words, or {dense}."
        case NothingFound.WORDS_AND_FILTER:
            return (
                f"{passage} that matches {filter_name} contains a word of the question. Remove a condition, ask with "
                f"other words, or {dense}."
            )
