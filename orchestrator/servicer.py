"""RagService: convert, one call of the pipeline, convert back."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

from orchestrator import convert
from orchestrator.deadline import Deadline
from orchestrator.pipeline import Pipeline
from ragserve.serving.deadlines import remaining_seconds
from ragserve.v1 import orchestrator_pb2 as pb
from ragserve.v1 import orchestrator_pb2_grpc

SERVICE_NAME = pb.DESCRIPTOR.services_by_name["RagService"].full_name


class RagServicer(orchestrator_pb2_grpc.RagServiceServicer):
    """The gRPC face of the pipeline."""

    def __init__(self, pipeline: Pipeline, default_timeout_seconds: float) -> None:
        self._pipeline = pipeline
        self._default_timeout_seconds = default_timeout_seconds

    async def Generate(self, request: pb.GenerateRequest, context: Any) -> pb.GenerateResponse:  # noqa: N802
        """Answer a question."""
        ask = convert.generate_from_proto(request)
        return convert.answer_to_proto(await self._pipeline.generate(ask, self._deadline(context)))

    async def GenerateStream(  # noqa: N802
        self, request: pb.GenerateStreamRequest, context: Any
    ) -> AsyncIterator[pb.GenerateStreamResponse]:
        """Answer a question in events."""
        ask = convert.generate_from_proto(request.request)
        async with aclosing(self._pipeline.generate_stream(ask, self._deadline(context))) as events:
            async for event in events:
                yield convert.event_to_proto(event)

    async def Score(  # noqa: N802
        self, request: pb.RagServiceScoreRequest, context: Any
    ) -> pb.RagServiceScoreResponse:
        """The probability of an answer."""
        ask = convert.score_from_proto(request)
        return convert.score_to_proto(await self._pipeline.score(ask, self._deadline(context)))

    async def Retrieve(  # noqa: N802
        self, request: pb.RagServiceRetrieveRequest, context: Any
    ) -> pb.RagServiceRetrieveResponse:
        """The passages of a question."""
        sources = convert.sources_from_proto(request)
        return convert.retrieved_to_proto(await self._pipeline.retrieve(sources, self._deadline(context)))

    def _deadline(self, context: Any) -> Deadline:
        remaining = remaining_seconds(context)
        return Deadline.after(self._default_timeout_seconds if remaining is None else remaining)
