"""RetrieverService: convert, one engine call, convert back."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from ragserve.errors import InvalidInputError
from ragserve.serving.deadlines import remaining_seconds
from ragserve.serving.interceptor import told
from ragserve.serving.messages import require_sendable
from ragserve.serving.streams import require_ended_by_client
from ragserve.v1 import retriever_pb2, retriever_pb2_grpc
from retriever_svc import convert
from retriever_svc.engine import RetrieverEngine
from retriever_svc.live.history import diff_versions, list_versions, read_passages, read_passages_of
from retriever_svc.live.writer import DEFAULT_KEEP_SECONDS, DEFAULT_KEEP_VERSIONS
from retriever_svc.pipelining import pipelined
from retriever_svc.requests import check_ids, check_new_passages
from retriever_svc.splitting import SplitOptions
from retriever_svc.types import NewPassage

SERVICE_NAME = retriever_pb2.DESCRIPTOR.services_by_name["RetrieverService"].full_name
BESIDE_RESPONSE = 64  # bytes of a message of a stream besides the response in it, at most
SLICE_PASSAGES = (
    4  # checked at a time, so that an upsert holds up no search for longer than a fraction of a millisecond
)


class RetrieverServicer(retriever_pb2_grpc.RetrieverServiceServicer):
    """The gRPC face of the engine."""

    def __init__(self, engine: RetrieverEngine) -> None:
        self._engine = engine

    async def Retrieve(  # noqa: N802
        self, request: retriever_pb2.RetrieverServiceRetrieveRequest, context: Any
    ) -> retriever_pb2.RetrieverServiceRetrieveResponse:
        """The nearest passages of each query."""
        queries = convert.queries_from_proto(request.queries)
        options = convert.options_from_proto(request.options, self._engine.default_lookup)
        found = await self._engine.retrieve(
            queries, request.k, request.knowledge_version, options, allow_fewer=request.allow_fewer
        )
        return convert.retrieval_to_proto(found)

    async def RetrieveStream(  # noqa: N802
        self, request_iterator: AsyncIterator[retriever_pb2.RetrieveStreamRequest], context: Any
    ) -> AsyncIterator[retriever_pb2.RetrieveStreamResponse]:
        """The nearest passages of each request, as they are found."""

        async def answer(item: retriever_pb2.RetrieveStreamRequest) -> retriever_pb2.RetrieveStreamResponse:
            try:
                response = await self.Retrieve(item.request, context)
                require_sendable(response.ByteSize() + BESIDE_RESPONSE, self._engine.limits.max_message_bytes)
            except Exception as error:
                failure = told(error, f"{SERVICE_NAME}/RetrieveStream", self._engine.private_paths)
                return convert.stream_error_to_proto(item.id, failure)
            return retriever_pb2.RetrieveStreamResponse(id=item.id, response=response)

        async for response in pipelined(request_iterator, answer, self._engine.limits.max_stream_requests):
            yield response

    async def GetInfo(  # noqa: N802
        self, request: retriever_pb2.RetrieverServiceGetInfoRequest, context: Any
    ) -> retriever_pb2.RetrieverServiceGetInfoResponse:
        """What is loaded."""
        return convert.info_to_proto(self._engine.info())

    async def UpsertPassages(  # noqa: N802
        self, request_iterator: AsyncIterator[retriever_pb2.UpsertPassagesRequest], context: Any
    ) -> retriever_pb2.UpsertPassagesResponse:
        """Adds or replaces passages: each part is checked as it comes, all of them are one commit."""
        editor, seen = self._engine.editor, set[str]()
        passages: list[NewPassage] = []
        split: SplitOptions | None = None
        async for part in request_iterator:
            if not passages and part.HasField("split"):
                split = convert.split_from_proto(part.split)
                with convert.split_fields():
                    split.check()
            for start in range(0, len(part.passages), SLICE_PASSAGES):
                messages = part.passages[start : start + SLICE_PASSAGES]
                new = convert.new_passages_from_proto(messages, len(passages))
                check_new_passages(
                    new, len(passages), seen, self._engine.dimension, self._engine.limits, split=split is not None
                )
                passages += new
                await asyncio.sleep(0)
        await require_ended_by_client(context)
        if not passages:
            raise InvalidInputError("passages", "passages is empty: give at least one passage")
        clock = self._engine.clock()
        with convert.split_fields():
            upsert, truncated = await editor.upsert(passages, clock, split, remaining_seconds(context))
        self._engine.passages_truncated(truncated.count)
        return convert.upsert_to_proto(upsert, truncated, clock.timings())

    async def DeletePassages(  # noqa: N802
        self, request: retriever_pb2.DeletePassagesRequest, context: Any
    ) -> retriever_pb2.DeletePassagesResponse:
        """Deletes passages in one commit."""
        check_ids(request.ids, self._engine.limits)
        editor, clock = self._engine.editor, self._engine.clock()
        left = remaining_seconds(context)
        return convert.deletion_to_proto(await editor.delete(request.ids, clock, left, chunks=request.chunks))

    async def GetPassages(  # noqa: N802
        self, request: retriever_pb2.GetPassagesRequest, context: Any
    ) -> retriever_pb2.GetPassagesResponse:
        """Reads passages by id."""
        check_ids(request.ids, self._engine.limits)
        read = read_passages if request.knowledge_version or self._engine.pinned else read_passages_of
        version = request.knowledge_version or self._engine.info().knowledge_version
        found = await asyncio.to_thread(read, self._engine.knowledge, request.ids, version)
        return convert.passages_to_proto(request.ids, *found)

    async def ListVersions(  # noqa: N802
        self, request: retriever_pb2.ListVersionsRequest, context: Any
    ) -> retriever_pb2.ListVersionsResponse:
        """The versions that can still be read."""
        versions = await asyncio.to_thread(list_versions, self._engine.knowledge)
        return convert.versions_to_proto(versions, self._engine.loaded_versions)

    async def Rollback(  # noqa: N802
        self, request: retriever_pb2.RollbackRequest, context: Any
    ) -> retriever_pb2.RollbackResponse:
        """Commits the content of an older version."""
        editor, clock = self._engine.editor, self._engine.clock()
        version = await editor.rollback(request.knowledge_version, clock, remaining_seconds(context))
        return retriever_pb2.RollbackResponse(knowledge_version=version)

    async def DiffVersions(  # noqa: N802
        self, request: retriever_pb2.DiffVersionsRequest, context: Any
    ) -> retriever_pb2.DiffVersionsResponse:
        """What differs between two versions."""
        wanted = (request.from_version, request.to_version, request.limit)
        return convert.diff_to_proto(await asyncio.to_thread(diff_versions, self._engine.knowledge, *wanted))

    async def Refresh(  # noqa: N802
        self, request: retriever_pb2.RefreshRequest, context: Any
    ) -> retriever_pb2.RefreshResponse:
        """Loads what was committed meanwhile."""
        return retriever_pb2.RefreshResponse(knowledge_version=await self._engine.refresh())

    async def Compact(  # noqa: N802
        self, request: retriever_pb2.CompactRequest, context: Any
    ) -> retriever_pb2.CompactResponse:
        """Compacts the files and removes old versions."""
        versions = request.keep_versions if request.HasField("keep_versions") else DEFAULT_KEEP_VERSIONS
        seconds = request.keep_seconds if request.HasField("keep_seconds") else DEFAULT_KEEP_SECONDS
        editor, clock = self._engine.editor, self._engine.clock()
        return convert.compaction_to_proto(await editor.compact(versions, seconds, clock, remaining_seconds(context)))
