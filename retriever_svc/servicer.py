"""RetrieverService: convert, one engine call, convert back."""

from __future__ import annotations

from typing import Any

from ragserve.v1 import retriever_pb2, retriever_pb2_grpc
from retriever_svc.convert import info_to_proto, queries_from_proto, retrieval_to_proto
from retriever_svc.engine import RetrieverEngine

SERVICE_NAME = retriever_pb2.DESCRIPTOR.services_by_name["RetrieverService"].full_name


class RetrieverServicer(retriever_pb2_grpc.RetrieverServiceServicer):
    """The gRPC face of the engine."""

    def __init__(self, engine: RetrieverEngine) -> None:
        self._engine = engine

    async def Retrieve(  # noqa: N802
        self, request: retriever_pb2.RetrieverServiceRetrieveRequest, context: Any
    ) -> retriever_pb2.RetrieverServiceRetrieveResponse:
        """The nearest passages of each query."""
        queries = queries_from_proto(request.queries)
        return retrieval_to_proto(await self._engine.retrieve(queries, request.k, request.knowledge_version))

    async def GetInfo(  # noqa: N802
        self, request: retriever_pb2.RetrieverServiceGetInfoRequest, context: Any
    ) -> retriever_pb2.RetrieverServiceGetInfoResponse:
        """What is loaded."""
        return info_to_proto(self._engine.info())
