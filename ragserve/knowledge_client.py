"""The Python client of RetrieverService: changing a knowledge base while it serves, and searching it directly."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing
from types import TracebackType
from typing import Any, Self, TypeVar

from ragserve import arguments
from ragserve import knowledge_calls as calls
from ragserve.calls import Retries, TimeLeft, deadline
from ragserve.connection import Connection
from ragserve.errors import RagserveError
from ragserve.failures import RETRIEVER
from ragserve.filters import Filter
from ragserve.knowledge import (
    Compacted,
    Deleted,
    KnowledgeVersion,
    Lookup,
    LookupResult,
    NewPassage,
    Query,
    RetrieverInfo,
    Split,
    StoredPassages,
    StreamedLookup,
    Upserted,
    VersionDiff,
)
from ragserve.knowledge_messages import Progress, stream_request, streamed
from ragserve.v1 import retriever_pb2, retriever_pb2_grpc

DEFAULT_TIMEOUT_SECONDS = 60.0
DEFAULT_WRITE_TIMEOUT_SECONDS = 600.0  # embedding takes its time
DEFAULT_ATTEMPTS = 8
CHANNEL_ATTEMPTS = 4  # of reads, which the channel tries again by itself; gRPC caps it at 5
READS = tuple(
    f"/ragserve.v1.RetrieverService/{method}"
    for method in ("Retrieve", "GetInfo", "GetPassages", "ListVersions", "DiffVersions", "Refresh")
)

R = TypeVar("R")


class KnowledgeClient:
    """A blocking client of a retriever; threads may share it. Use it as a context manager, or call `close`.

    target: "host:port", or a gRPC name such as "dns:///retriever:50061". timeout_seconds: deadline of each call with
    all its attempts, None for none; write_timeout_seconds: the same for what commits. max_attempts: how often a write
    is tried.

    A write is tried again when another writer was first (AbortedError: nothing was written), after the pause that the
    service asks for, doubled each time. An upsert, a deletion or a compaction is also tried again when the retriever
    is gone (UnavailableError): passages are known by their ids, so doing it twice does no harm, and the counts speak of
    the last attempt. A rollback is not, since it might undo what another writer has committed meanwhile. Where a write
    fails and may have been committed all the same, its error says so, and its `outcome_unknown` is true.

    All methods raise the errors of `ragserve.errors` only: InvalidInputError for an argument of the wrong type or
    beyond a limit, FailedPreconditionError after `close`. What the caller's own iterables and functions raise passes
    unchanged. The connection is made at the first call, so a client may be made before a process is forked, but not
    used.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_seconds: float | None = DEFAULT_TIMEOUT_SECONDS,
        write_timeout_seconds: float | None = DEFAULT_WRITE_TIMEOUT_SECONDS,
        max_attempts: int = DEFAULT_ATTEMPTS,
    ) -> None:
        self._timeout_seconds = arguments.seconds("timeout_seconds", timeout_seconds)
        self._write_timeout_seconds = arguments.seconds("write_timeout_seconds", write_timeout_seconds)
        self._retries = Retries(max_attempts)
        reads = min(max_attempts, CHANNEL_ATTEMPTS)
        self._connection = Connection(retriever_pb2_grpc.RetrieverServiceStub, RETRIEVER, target, READS, reads)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection. Calls at work are cancelled, later ones raise FailedPreconditionError."""
        self._connection.close()

    def upsert(
        self,
        passages: Iterable[NewPassage | Mapping[str, Any]],
        *,
        split: Split | None = None,
        progress: Progress | None = None,
        timeout_seconds: float | None = None,
    ) -> Upserted:
        """Adds passages, and replaces those whose ids are there already, in one commit: all of them or none.

        They are `NewPassage`s or mappings with its fields. Searches on the replica that took them find them from now
        on. split: long texts become several passages. progress: told how many are sent, and of how many, from another
        thread; it starts anew with each attempt.
        """
        return self._write(calls.upsert(passages, progress, split), timeout_seconds)

    def delete(self, ids: Iterable[str], *, chunks: bool = False, timeout_seconds: float | None = None) -> Deleted:
        """Deletes passages in one commit.

        chunks: an id that is not there stands for the passages that its text was split into.
        """
        return self._write(calls.delete(ids, chunks), timeout_seconds)

    def rollback(self, knowledge_version: int, *, timeout_seconds: float | None = None) -> int:
        """Commits a new version with the content of an older one; its number."""
        return self._write(calls.rollback(knowledge_version), timeout_seconds)

    def compact(
        self,
        *,
        keep_versions: int | None = None,
        keep_seconds: float | None = None,
        timeout_seconds: float | None = None,
    ) -> Compacted:
        """Compacts the files; removes versions that are neither among the newest (10) nor younger (3,600 s)."""
        return self._write(calls.compact(keep_versions, keep_seconds), timeout_seconds)

    def get(
        self, ids: Iterable[str], *, knowledge_version: int = 0, timeout_seconds: float | None = None
    ) -> StoredPassages:
        """Reads passages by id, from the newest version loaded or any that `versions` lists."""
        return self._read(calls.get(ids, knowledge_version), timeout_seconds)

    def versions(self, *, timeout_seconds: float | None = None) -> tuple[KnowledgeVersion, ...]:
        """The versions that can still be read, oldest first."""
        return self._read(calls.versions(), timeout_seconds)

    def diff(
        self, from_version: int, to_version: int = 0, *, limit: int = 0, timeout_seconds: float | None = None
    ) -> VersionDiff:
        """Which passages differ between two versions; 0: the newest. limit: most ids of each kind; 0: 1,000."""
        return self._read(calls.diff(from_version, to_version, limit), timeout_seconds)

    def refresh(self, *, timeout_seconds: float | None = None) -> int:
        """Has the retriever load what was committed elsewhere, now; the newest version loaded then."""
        return self._read(calls.refresh(), timeout_seconds)

    def info(self, *, timeout_seconds: float | None = None) -> RetrieverInfo:
        """What the retriever has loaded."""
        return self._read(calls.info(), timeout_seconds)

    def retrieve(  # noqa: PLR0913  (by name, as `Lookup` has them)
        self,
        queries: Query | Iterable[Query],
        k: int | None = None,
        *,
        knowledge_version: int = 0,
        filter: Filter | None = None,
        nprobe: int = 0,
        ef_search: int = 0,
        search_kind: str | None = None,
        lexical_weight: float | None = None,
        timeout_seconds: float | None = None,
    ) -> LookupResult:
        """The k passages nearest to each query: a text, a vector [dim], or several of them. See `Lookup`."""
        lookup = Lookup(queries, k, knowledge_version, filter, nprobe, ef_search, search_kind, lexical_weight)
        return self._read(calls.retrieve(lookup), timeout_seconds)

    def retrieve_stream(
        self, lookups: Iterable[Lookup | Query], *, timeout_seconds: float | None = None
    ) -> Generator[StreamedLookup, None, None]:
        """Many lookups on one stream, each answered as soon as it is found, in any order, or with an error of its own.

        `lookups` is read from another thread, a bounded number ahead; what it raises is raised here, after the answers
        to those before. Closing the generator cancels what is not answered. timeout_seconds is for all of them.
        """
        left = TimeLeft.of(deadline(self._timeout_seconds, timeout_seconds))
        return self._stream(arguments.items("lookups", "lookups", lookups, "lookups and queries"), left)

    def _stream(self, lookups: Iterator[Lookup | Query], left: TimeLeft) -> Generator[StreamedLookup, None, None]:
        failures: list[Exception] = []
        requests = _requests(lookups, failures)
        with closing(self._connection.stream("RetrieveStream", requests, left)) as responses:
            for response in responses:
                yield streamed(response)
        if failures:
            raise failures[0]

    def _read(self, call: calls.Call[R], timeout_seconds: float | None) -> R:
        return self._run(call, TimeLeft.of(deadline(self._timeout_seconds, timeout_seconds)))

    def _write(self, call: calls.Call[R], timeout_seconds: float | None) -> R:
        return self._run(call, TimeLeft.of(deadline(self._write_timeout_seconds, timeout_seconds)))

    def _run(self, call: calls.Call[R], left: TimeLeft) -> R:
        def attempt() -> R:
            try:
                return call.read(self._connection.call(call.method, call.body(), left))
            except RagserveError as error:
                call.failed(error)
                raise

        return self._retries.run(attempt, call.retried, left)


def _requests(
    lookups: Iterator[Lookup | Query], failures: list[Exception]
) -> Iterator[retriever_pb2.RetrieveStreamRequest]:
    """The requests of a stream, numbered. gRPC would only log what goes wrong here: it is kept in `failures`."""
    try:
        for number, lookup in enumerate(lookups):
            yield stream_request(number, lookup)
    except Exception as error:
        failures.append(error)
