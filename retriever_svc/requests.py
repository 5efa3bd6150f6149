"""Limits on requests, and the checks that need nothing but the request and them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ragserve.errors import InvalidInputError
from retriever_svc.types import Query


@dataclass(frozen=True)
class RequestLimits:
    """The most that a request may ask for; each is documented in `RetrieverSettings`."""

    max_k: int = 100
    max_batch_queries: int = 64
    max_query_characters: int = 10_000


def check_k(k: int, n_passages: int, limits: RequestLimits) -> None:
    """Raises InvalidInputError unless k is between 1 and what there is and may be asked for."""
    most = min(n_passages, limits.max_k)
    if k < 1:
        raise InvalidInputError("k", f"k is {k}; it must be at least 1")
    if k > most:
        why = "passages in the index" if most == n_passages else "the service's limit (max_k)"
        raise InvalidInputError("k", f"k is {k}; it must be at most {most}, {why}")


def check_queries(queries: Sequence[Query], dimension: int, limits: RequestLimits) -> None:
    """Raises InvalidInputError for the first query that cannot be searched for."""
    if not queries:
        raise InvalidInputError("queries", "queries is empty: give at least one query")
    if len(queries) > limits.max_batch_queries:
        raise InvalidInputError(
            "queries", f"queries has {len(queries)} entries; at most {limits.max_batch_queries} go into one request"
        )
    for number, query in enumerate(queries):
        if query.vector is None:
            _check_text(f"queries[{number}].text", query.text, limits.max_query_characters)
        else:
            _check_vector(f"queries[{number}].vector", query.vector, dimension)


def _check_text(field: str, text: str, max_characters: int) -> None:
    if not text.strip():
        raise InvalidInputError(field, f"{field} is empty: ask something")
    if len(text) > max_characters:
        raise InvalidInputError(field, f"{field} has {len(text)} characters; at most {max_characters} are allowed")


def _check_vector(field: str, vector: np.ndarray, dimension: int) -> None:
    if vector.shape != (dimension,):
        raise InvalidInputError(field, f"{field} has {vector.size} values; the index has vectors of {dimension}")
    if not np.isfinite(vector).all():
        raise InvalidInputError(field, f"{field} holds a value that is not finite")
