"""The calls of the knowledge client: what is sent, how the response is read, and what is tried again."""

# ruff: noqa: D103  (a function for each call of the client, under its name)

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Generic, TypeVar

from ragserve import arguments
from ragserve.calls import Errors
from ragserve.errors import AbortedError, RagserveError, UnavailableError
from ragserve.knowledge import (
    Compacted,
    Deleted,
    KnowledgeVersion,
    Lookup,
    LookupResult,
    NewPassage,
    RetrieverInfo,
    Split,
    StoredPassage,
    StoredPassages,
    Upserted,
    VersionDiff,
)
from ragserve.knowledge_messages import Parts, Progress, lookup_result, lookup_to_proto, message_of, parts_of
from ragserve.requests import set_field, set_required
from ragserve.responses import metadata, timings_seconds
from ragserve.v1 import retriever_pb2 as pb

AGAIN = "Doing it again does no harm"
# A race that is lost has written nothing. Where a connection breaks, nobody knows: only what may be done twice is.
LOST_RACE: Errors = (AbortedError,)
MAY_BE_DONE_TWICE: Errors = (AbortedError, UnavailableError)

R = TypeVar("R")


@dataclass(frozen=True)
class Call(Generic[R]):
    """A call of a method: its request (several: a stream), how the response is read, and errors that are retried.

    `in_doubt`: for a write, what its error says if it may have been committed nevertheless.
    """

    method: str
    request: Any
    read: Callable[[Any], R]
    retried: Errors = ()
    in_doubt: str = ""
    lost: list[RagserveError] = field(default_factory=list)  # errors of attempts whose outcome is unknown

    def body(self) -> Any:
        """What the stub's method takes: the request, or an iterator of the parts of a stream."""
        return iter(self.request) if isinstance(self.request, Parts) else self.request

    def failed(self, error: RagserveError) -> None:
        """Takes the error of an attempt. Raises what the caller's `progress` raised while the request was sent.

        Adds `in_doubt` to the error of a write if the outcome of this attempt, or of an earlier one, is unknown.
        """
        if isinstance(self.request, Parts) and self.request.raised:
            raise self.request.raised[0]
        if error.outcome_unknown:
            self.lost.append(error)
        if self.in_doubt and self.lost:
            error.outcome_unknown = True
            end = "" if error.message.endswith((".", "?", "!")) else "."
            error.message = f"{error.message}{end} {self.in_doubt}"


def upsert(
    passages: Iterable[NewPassage | Mapping[str, Any]], progress: Progress | None, split: Split | None = None
) -> Call[Upserted]:
    """Adds or replaces passages. Raises InvalidInputError for a passage that cannot be sent; it is named."""
    arguments.function("progress", progress)
    chunks = None if split is None else arguments.record("split", "split", Split, split)
    given = arguments.items("passages", "passages", passages, "passages")
    parts = tuple(parts_of(message_of(number, passage) for number, passage in enumerate(given)))
    if chunks is not None and parts:
        parts[0].split.SetInParent()
        for name in ("words", "tokens", "overlap"):
            set_field(parts[0].split, name, getattr(chunks, name), "split.")
    return Call(
        "UpsertPassages",
        Parts(parts, progress),
        lambda response: Upserted(
            response.knowledge_version,
            response.inserted,
            response.updated,
            timings_seconds(response.timings),
            response.truncated_passages,
            tuple(response.truncated_ids),
            response.removed_chunks,
        ),
        MAY_BE_DONE_TWICE,
        "Nobody knows whether the passages were committed: see the versions. Sending them again does no harm",
    )


def delete(ids: Iterable[str], chunks: bool = False) -> Call[Deleted]:
    return Call(
        "DeletePassages",
        pb.DeletePassagesRequest(ids=_ids(ids), chunks=arguments.flag("chunks", "chunks", chunks)),
        lambda response: Deleted(response.knowledge_version, response.deleted, tuple(response.missing_ids)),
        MAY_BE_DONE_TWICE,
        f"Nobody knows whether the deletion was committed. {AGAIN}",
    )


def get(ids: Iterable[str], knowledge_version: int) -> Call[StoredPassages]:
    request = pb.GetPassagesRequest(ids=_ids(ids))
    set_field(request, "knowledge_version", knowledge_version)
    return Call(
        "GetPassages",
        request,
        lambda response: StoredPassages(
            tuple(StoredPassage(p.id, p.title, p.text, metadata(p.metadata_json)) for p in response.passages),
            tuple(response.missing_ids),
            response.knowledge_version,
        ),
    )


def versions() -> Call[tuple[KnowledgeVersion, ...]]:
    def read(response: pb.ListVersionsResponse) -> tuple[KnowledgeVersion, ...]:
        return tuple(
            KnowledgeVersion(one.version, one.created_unix_seconds, one.passages, one.operation, one.loaded)
            for one in response.versions
        )

    return Call("ListVersions", pb.ListVersionsRequest(), read)


def rollback(knowledge_version: int) -> Call[int]:
    """Goes back. Done twice, it could undo what another writer committed between."""
    request = pb.RollbackRequest()
    set_required(request, "knowledge_version", knowledge_version)
    return Call(
        "Rollback",
        request,
        lambda response: int(response.knowledge_version),
        LOST_RACE,
        "Nobody knows whether the rollback was committed: see the versions before you do it again",
    )


def diff(from_version: int, to_version: int, limit: int) -> Call[VersionDiff]:
    request = pb.DiffVersionsRequest()
    set_required(request, "from_version", from_version)
    set_field(request, "to_version", to_version)
    set_field(request, "limit", limit)
    return Call("DiffVersions", request, lambda response: _diff(request.from_version, response))


def refresh() -> Call[int]:
    """Loads what was committed elsewhere."""
    return Call("Refresh", pb.RefreshRequest(), lambda response: int(response.knowledge_version))


def compact(keep_versions: int | None, keep_seconds: float | None) -> Call[Compacted]:
    request = pb.CompactRequest()
    set_field(request, "keep_versions", keep_versions)
    set_field(request, "keep_seconds", keep_seconds)
    return Call(
        "Compact",
        request,
        lambda response: Compacted(response.knowledge_version, response.versions_removed, response.bytes_removed),
        MAY_BE_DONE_TWICE,
        f"Nobody knows whether the compaction was done. {AGAIN}",
    )


def info() -> Call[RetrieverInfo]:
    def read(response: pb.RetrieverServiceGetInfoResponse) -> RetrieverInfo:
        values = {one.name: getattr(response, one.name) for one in fields(RetrieverInfo)}
        return RetrieverInfo(**{**values, "loaded_versions": tuple(response.loaded_versions)})

    return Call("GetInfo", pb.RetrieverServiceGetInfoRequest(), read)


def retrieve(lookup: Lookup) -> Call[LookupResult]:
    return Call("Retrieve", lookup_to_proto(lookup), lookup_result)


def _diff(from_version: int, response: pb.DiffVersionsResponse) -> VersionDiff:
    return VersionDiff(
        from_version,
        response.to_version,
        tuple(response.added_ids),
        tuple(response.changed_ids),
        tuple(response.removed_ids),
        response.added,
        response.changed,
        response.removed,
    )


def _ids(given: Iterable[str]) -> list[str]:
    """The ids; a text is one of them."""
    if isinstance(given, str):
        return [arguments.text("ids", "ids", given)]
    found = arguments.items("ids", "ids", given.keys() if isinstance(given, Mapping) else given, "ids")
    return [arguments.text(f"ids[{number}]", f"ids[{number}]", one) for number, one in enumerate(found)]
