"""The asyncio twin of the knowledge client."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self, TypeVar

from ragserve import arguments
from ragserve import knowledge_calls as calls
from ragserve.calls import Retries, TimeLeft, deadline
from ragserve.connection import AsyncConnection
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
from ragserve.knowledge_client import (
    CHANNEL_ATTEMPTS,
    DEFAULT_ATTEMPTS,
    DEFAULT_TIMEOUT_SECONDS,
    DEFAULT_WRITE_TIMEOUT_SECONDS,
    READS,
)
from ragserve.knowledge_messages import Progress, stream_request, streamed
from ragserve.v1 import retriever_pb2, retriever_pb2_grpc

R = TypeVar("R")


class AsyncKnowledgeClient:
    """The asyncio twin of KnowledgeClient. Use it as an async context manager, or await `close`.

    Cancelling the task that awaits a method cancels the call; only then does CancelledError come out, and whether a
    write was committed is not known. The client may be made outside of an event loop, and used in several: each loop
    gets a connection of its own.
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
        self._connection = AsyncConnection(retriever_pb2_grpc.RetrieverServiceStub, RETRIEVER, target, READS, reads)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection. Calls at work are cancelled, later ones raise FailedPreconditionError."""
        await self._connection.close()

    async def upsert(
        self,
        passages: Iterable[NewPassage | Mapping[str, Any]],
        *,
        split: Split | None = None,
        progress: Progress | None = None,
        timeout_seconds: float | None = None,
    ) -> Upserted:
        """Adds or replaces passages in one commit; see `KnowledgeClient.upsert`."""
        return await self._write(calls.upsert(passages, progress, split), timeout_seconds)

    async def delete(
        self, ids: Iterable[str], *, chunks: bool = False, timeout_seconds: float | None = None
    ) -> Deleted:
        """Deletes passages in one commit."""
        return await self._write(calls.delete(ids, chunks), timeout_seconds)

    async def rollback(self, knowledge_version: int, *, timeout_seconds: float | None = None) -> int:
        """Commits a new version with the content of an older one; its number."""
        return await self._write(calls.rollback(knowledge_version), timeout_seconds)

    async def compact(
        self,
        *,
        keep_versions: int | None = None,
        keep_seconds: float | None = None,
        timeout_seconds: float | None = None,
    ) -> Compacted:
        """Compacts the files; removes versions that are neither among the newest (10) nor younger (3,600 s)."""
        return await self._write(calls.compact(keep_versions, keep_seconds), timeout_seconds)

    async def get(
        self, ids: Iterable[str], *, knowledge_version: int = 0, timeout_seconds: float | None = None
    ) -> StoredPassages:
        """Reads passages by id, from the newest version loaded or any that `versions` lists."""
        return await self._read(calls.get(ids, knowledge_version), timeout_seconds)

    async def versions(self, *, timeout_seconds: float | None = None) -> tuple[KnowledgeVersion, ...]:
        """The versions that can still be read, oldest first."""
        return await self._read(calls.versions(), timeout_seconds)

    async def diff(
        self, from_version: int, to_version: int = 0, *, limit: int = 0, timeout_seconds: float | None = None
    ) -> VersionDiff:
        """Which passages differ between two versions; 0: the newest. limit: most ids of each kind; 0: 1,000."""
        return await self._read(calls.diff(from_version, to_version, limit), timeout_seconds)

    async def refresh(self, *, timeout_seconds: float | None = None) -> int:
        """Has the retriever load what was committed elsewhere, now; the newest version loaded then."""
        return await self._read(calls.refresh(), timeout_seconds)

    async def info(self, *, timeout_seconds: float | None = None) -> RetrieverInfo:
        """What the retriever has loaded."""
        return await self._read(calls.info(), timeout_seconds)

    async def retrieve(  # noqa: PLR0913  (by name, as `Lookup` has them)
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
        return await self._read(calls.retrieve(lookup), timeout_seconds)

    def retrieve_stream(
        self,
        lookups: Iterable[Lookup | Query] | AsyncIterable[Lookup | Query],
        *,
        timeout_seconds: float | None = None,
    ) -> AsyncGenerator[StreamedLookup, None]:
        """Many lookups on one stream; see `KnowledgeClient.retrieve_stream`. `lookups` may be asynchronous."""
        left = TimeLeft.of(deadline(self._timeout_seconds, timeout_seconds))
        if not isinstance(lookups, AsyncIterable):
            lookups = arguments.items("lookups", "lookups", lookups, "lookups and queries")
        return self._stream(lookups, left)

    async def _stream(
        self, lookups: Iterable[Lookup | Query] | AsyncIterable[Lookup | Query], left: TimeLeft
    ) -> AsyncGenerator[StreamedLookup, None]:
        failures: list[Exception] = []
        requests = _requests(lookups, failures)
        async with aclosing(self._connection.stream("RetrieveStream", requests, left)) as responses:
            async for response in responses:
                yield streamed(response)
        if failures:
            raise failures[0]

    async def _read(self, call: calls.Call[R], timeout_seconds: float | None) -> R:
        return await self._run(call, TimeLeft.of(deadline(self._timeout_seconds, timeout_seconds)))

    async def _write(self, call: calls.Call[R], timeout_seconds: float | None) -> R:
        return await self._run(call, TimeLeft.of(deadline(self._write_timeout_seconds, timeout_seconds)))

    async def _run(self, call: calls.Call[R], left: TimeLeft) -> R:
        async def attempt() -> R:
            try:
                return call.read(await self._connection.call(call.method, call.body(), left))
            except RagserveError as error:
                call.failed(error)
                raise

        return await self._retries.run_async(attempt, call.retried, left)


async def _requests(
    lookups: Iterable[Lookup | Query] | AsyncIterable[Lookup | Query], failures: list[Exception]
) -> AsyncIterator[retriever_pb2.RetrieveStreamRequest]:
    """The requests of a stream, numbered. gRPC would only log what goes wrong here: it is kept in `failures`."""
    number = 0
    try:
        if isinstance(lookups, AsyncIterable):
            async for lookup in lookups:
                yield stream_request(number, lookup)
                number += 1
        else:
            for lookup in lookups:
                yield stream_request(number, lookup)
                number += 1
    except Exception as error:
        failures.append(error)
