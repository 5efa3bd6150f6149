"""A RagService that answers with what it was asked, on the shared runtime."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from ragserve import errors
from ragserve.v1 import orchestrator_pb2, orchestrator_pb2_grpc

SERVICE_NAME = orchestrator_pb2.DESCRIPTOR.services_by_name["RagService"].full_name
PASSAGES = (("d1", "Darwin", "He wrote.", 3.0, 0.75, 0.9), ("d2", "Wallace", "He too.", 2.0, 0.25, 0.1))


def passages() -> list[Any]:
    made = []
    for ident, title, text, score, prior, posterior in PASSAGES:
        message = orchestrator_pb2.AnswerPassage(score=score, prior=prior, posterior=posterior)
        message.passage.id, message.passage.title, message.passage.text = ident, title, text
        made.append(message)
    made[0].passage.metadata_json = '{"year": 1859}'
    return made


def answer() -> Any:
    response = orchestrator_pb2.GenerateResponse(passages=passages(), knowledge_version=7, warnings=["a warning"])
    response.hypotheses.add(text="Darwin", log_prob=-0.5, score=-0.25, token_ids=[5, 2])
    response.hypotheses.add(text="Wallace", log_prob=-1.5, score=-0.75, token_ids=[6, 2])
    response.token_posteriors.add(token_id=5, piece="Darwin", posterior=[0.75, 0.25])
    response.token_posteriors.add(token_id=2, piece="</s>", posterior=[0.5, 0.5])
    response.timings.add(stage="search", seconds=0.5, count=1)
    response.timings.add(stage="decode_step", seconds=1.5, count=3)
    return response


@dataclass
class Rag(orchestrator_pb2_grpc.RagServiceServicer):
    """Remembers the requests; the question decides what happens."""

    requests: list[Any] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    failures_left: int = 0

    async def Generate(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        if self.failures_left:
            self.failures_left -= 1
            raise errors.UnavailableError("the generator is gone")
        if request.question == "slow":
            try:
                await asyncio.sleep(60)
            finally:
                self.ended.append("slow")
        if request.question == "full":
            raise errors.ResourceExhaustedError("full", retry_after_seconds=2.0)
        if request.HasField("n_docs") and not request.n_docs:
            raise errors.InvalidInputError("n_docs", "n_docs is 0; it must be at least 1")
        return orchestrator_pb2.GenerateResponse() if request.question == "nothing" else answer()

    async def GenerateStream(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.requests.append(request.request)
        response = orchestrator_pb2.GenerateStreamResponse
        try:
            yield response(passages=orchestrator_pb2.PassagesEvent(passages=passages(), knowledge_version=7))
            if request.request.question == "broken":
                raise errors.UnavailableError("the generator is gone")
            if request.request.question == "slow":
                await asyncio.sleep(60)
            yield response(tokens=orchestrator_pb2.TokensEvent(token_ids=[5], text="Darwin"))
            yield response(result=answer())
        finally:
            self.ended.append("stream")

    async def Retrieve(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        response = orchestrator_pb2.RagServiceRetrieveResponse(passages=passages(), knowledge_version=7)
        response.timings.add(stage="search", seconds=0.5, count=1)
        return response

    async def Score(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.requests.append(request)
        return orchestrator_pb2.RagServiceScoreResponse(
            log_prob=-1.25,
            token_ids=[5, 2],
            token_log_probs=[-1.0, -0.25],
            pieces=["Darwin", "</s>"],
            passages=passages(),
            knowledge_version=7,
        )

    def register(self, server: Any) -> None:
        orchestrator_pb2_grpc.add_RagServiceServicer_to_server(self, server)
