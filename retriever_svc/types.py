"""What the layers of the retriever hand to each other."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ragserve.nothing_found import NO_KEYS, FilterKeys, NothingFound
from ragserve.printable import counted

Float32: TypeAlias = NDArray[np.float32]
Int64: TypeAlias = NDArray[np.int64]


NAMED_TRUNCATED, NAMED_IN_A_SENTENCE = 10, 5
LARGEST = 1e15  # of a vector's values: products of two vectors then fit float32, whatever their width


def usable_rows(vectors: NDArray[Any]) -> NDArray[np.bool_]:
    """Which vectors [n_vectors, dim] hold finite values of at most LARGEST only."""
    largest = min(LARGEST, float(np.finfo(vectors.dtype).max))
    usable: NDArray[np.bool_] = (np.abs(vectors) <= largest).all(axis=1)
    return usable


@dataclass(frozen=True)
class Passage:
    """A passage of the knowledge base. `metadata_json` is a JSON object, or empty."""

    id: str
    title: str
    text: str
    metadata_json: str = ""


@dataclass(frozen=True, eq=False)
class Query:
    """A question to encode, or (when `vector` is given) a query vector float32 [dim]."""

    text: str = ""
    vector: Float32 | None = None


@dataclass(frozen=True, eq=False)
class NewPassage:
    """A passage to add or replace, and its vector float32 [dim]; None: the passage encoder makes it."""

    passage: Passage
    vector: Float32 | None = None


class Truncated:
    """Counts passages that are longer than the passage encoder reads, and keeps the first few names."""

    def __init__(self, count: int = 0, names: Iterable[str] = ()) -> None:
        self.count = count
        self.names = list(names)[:NAMED_TRUNCATED]

    def add(self, name: str) -> None:
        """Count one."""
        self.count += 1
        if len(self.names) < NAMED_TRUNCATED:
            self.names.append(name)

    def sentence(self) -> str:
        """What was counted, and what to do."""
        return truncated_passages(self.count, self.names)


def truncated_passages(count: int, names: Sequence[str]) -> str:
    """Says that the passage encoder does not read all of some passages, and what to do."""
    are = counted(count, "passage is", "passages are")
    few = ", ".join(names[:NAMED_IN_A_SENTENCE])
    return f"{are} longer than the passage encoder reads, beginning with {few}: split texts, or shorten titles"


@dataclass(frozen=True)
class Hit:
    """A retrieved passage: inner product with the query, and log p(z|x) among the passages retrieved with it."""

    passage: Passage
    score: float
    log_prior: float


@dataclass(frozen=True)
class QueryHits:
    """The passages of one query, best first, the query as the encoder's tokenizer reads it, and why there are none."""

    hits: tuple[Hit, ...]
    decoded_query: str = ""
    nothing_found: NothingFound | None = None
    filter_keys: FilterKeys = NO_KEYS
    read_tokens: int = 0
    unread_tokens: int = 0  # of a query that is longer than the query encoder reads


def unread_queries(results: Sequence[QueryHits], field: str = "queries[{number}].text") -> tuple[str, ...]:
    """Says which queries are longer than the query encoder reads."""
    return tuple(
        f"{field.format(number=number)} has {one.read_tokens + one.unread_tokens} tokens; the query encoder reads "
        f"{one.read_tokens} of them, and passages were searched by those."
        for number, one in enumerate(results)
        if one.unread_tokens
    )
