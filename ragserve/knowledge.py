"""What the knowledge client takes and returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ragserve.errors import InternalError, RagserveError
from ragserve.filters import Filter
from ragserve.results import Passage

Query: TypeAlias = str | NDArray[np.floating[Any]]  # a question, or a vector [dim]


@dataclass(frozen=True, eq=False)
class NewPassage:
    """A passage to add, or to replace the one of the same id.

    metadata: what filters ask for, by name; JSON must be able to hold it, and dates become ISO 8601 texts.
    vector: its vector [dim]; default: the retriever's passage encoder makes it of title and text.
    """

    id: str
    text: str
    title: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    vector: NDArray[np.floating[Any]] | None = None


@dataclass(frozen=True)
class Split:
    """Splits texts that are too long into passages ID#0, ID#1, and so on, of the same title and metadata.

    By words, or by tokens of the passage encoder, each sharing `overlap` of them with the one before; neither: at
    sentences, to what the passage encoder reads. A passage that fits, and one with a vector, stays as it is.
    """

    words: int = 0
    tokens: int = 0
    overlap: int = 0


@dataclass(frozen=True)
class StoredPassage:
    """A passage as the knowledge base holds it."""

    id: str
    title: str
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredPassages:
    """The requested passages that exist, in the order of the request, and the ids of the others."""

    passages: tuple[StoredPassage, ...]
    missing_ids: tuple[str, ...]
    knowledge_version: int


@dataclass(frozen=True)
class Upserted:
    """What an upsert committed: the version that holds it, and how many passages were new, and replaced.

    truncated_passages: those longer than the passage encoder reads; truncated_ids: the first 10 of them;
    removed_chunks: passages removed because they were parts of a former text (see `Split`).
    """

    knowledge_version: int
    inserted: int
    updated: int
    timings_seconds: Mapping[str, float] = field(default_factory=dict)
    truncated_passages: int = 0
    truncated_ids: tuple[str, ...] = ()
    removed_chunks: int = 0


@dataclass(frozen=True)
class Deleted:
    """What a deletion committed. The version is unchanged where none of the ids was there."""

    knowledge_version: int
    deleted: int
    missing_ids: tuple[str, ...]


@dataclass(frozen=True)
class KnowledgeVersion:
    """One version.

    operation: build, upsert, delete, rollback, compact, settings (how the files are kept; the passages are those of the
    version before), or other (another program). loaded: a request may pin it.
    """

    version: int
    created_unix_seconds: float
    passages: int
    operation: str
    loaded: bool | None = None  # None: no replica was asked


@dataclass(frozen=True)
class VersionDiff:
    """What differs between two versions. The counts are complete, the ids stop at the limit that was asked for."""

    from_version: int
    to_version: int
    added_ids: tuple[str, ...]
    changed_ids: tuple[str, ...]
    removed_ids: tuple[str, ...]
    added: int
    changed: int
    removed: int


@dataclass(frozen=True)
class Compacted:
    """What compaction did."""

    knowledge_version: int
    versions_removed: int
    bytes_removed: int


@dataclass(frozen=True)
class RetrieverInfo:
    """What a retriever has loaded, and the limits of its requests."""

    knowledge_version: int
    passages: int
    dimension: int
    index_factory: str
    device: str
    score_scale: float
    max_k: int
    max_batch_queries: int
    loaded_versions: tuple[int, ...]
    writable: bool
    delta_passages: int
    dead_rows: int


@dataclass(frozen=True, eq=False)
class Lookup:
    """A request to search: one query, or several that go together.

    k: passages for each query, default 5, or as many as there are; fewer where the filter lets fewer through.
    knowledge_version: 0 is the newest. filter: as {"lang": "en", "year": ragserve.between(1990, 2000)}. nprobe,
    ef_search: as the index's kind has them (IVF, HNSW); 0 is its own setting. search_kind: dense, bm25, weighted
    or rrf; lexical_weight: part of BM25 in a weighted search, 0 to 1; None: the retriever's settings.
    """

    queries: Query | Iterable[Query]
    k: int | None = None
    knowledge_version: int = 0
    filter: Filter | None = None
    nprobe: int = 0
    ef_search: int = 0
    search_kind: str | None = None
    lexical_weight: float | None = None


@dataclass(frozen=True)
class QueryPassages:
    """The passages of one query, best first, and the query as the encoder reads it (empty for a vector).

    nothing_found: why there are no passages, and what to do; empty where there are some.
    """

    passages: tuple[Passage, ...]
    decoded_query: str = ""
    nothing_found: str = ""


@dataclass(frozen=True)
class LookupResult:
    """Results in the order of the queries, all from one version.

    warnings: what the caller should know, such as fewer passages than the default.
    """

    results: tuple[QueryPassages, ...]
    knowledge_version: int
    timings_seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def passages(self) -> tuple[Passage, ...]:
        """The passages of the first query: all there is when only one was asked."""
        return self.results[0].passages


@dataclass(frozen=True)
class StreamedLookup:
    """The outcome of one request of a stream; `number` is its place among them, from 0. One of the two is there."""

    number: int
    found: LookupResult | None = None
    error: RagserveError | None = None

    def result(self) -> LookupResult:
        """What was found. Raises the error where there is one."""
        if self.found is None:
            raise self.error or InternalError("the service answered neither with passages nor with an error")
        return self.found
