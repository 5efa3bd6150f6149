"""The Python client of RagService, blocking and asyncio."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from types import TracebackType
from typing import Self, Unpack

from ragserve import requests, responses
from ragserve.calls import deadline, typed_errors
from ragserve.options import GenerateKeywords, RetrieveKeywords, ScoreKeywords
from ragserve.responses import Event
from ragserve.results import Answer, AnswerScore, Retrieval
from ragserve.serving.channel import MAX_ATTEMPTS, channel, sync_channel
from ragserve.v1 import orchestrator_pb2, orchestrator_pb2_grpc

DEFAULT_TIMEOUT_SECONDS = 60.0
# Streams are not tried again: the caller may have seen events already.
RETRIED_METHODS = tuple(f"/ragserve.v1.RagService/{method}" for method in ("Generate", "Score", "Retrieve"))


class Client:
    """A blocking client; threads may share it. Use it as a context manager, or call `close`.

    target: "host:port", or a gRPC name such as "dns:///orchestrator:50051". timeout_seconds: deadline of each
    call; None for none. max_attempts: how often a unary call is tried while the service is unavailable, 1 to 5.
    All methods raise the errors of `ragserve.errors`; the service validates what is passed.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_seconds: float | None = DEFAULT_TIMEOUT_SECONDS,
        max_attempts: int = MAX_ATTEMPTS,
    ) -> None:
        self._timeout_seconds = deadline(None, timeout_seconds)
        self._channel = sync_channel(target, retried_methods=RETRIED_METHODS, max_attempts=max_attempts)
        self._stub = orchestrator_pb2_grpc.RagServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection; calls at work are cancelled."""
        self._channel.close()

    def generate(self, question: str, **keywords: Unpack[GenerateKeywords]) -> Answer:
        """Answers a question. GenerationOptions and SourceKeywords describe the keywords."""
        request = requests.generate_request(question, keywords)
        timeout = deadline(self._timeout_seconds, keywords.get("timeout_seconds"))
        with typed_errors():
            return responses.answer(self._stub.Generate(request, timeout=timeout))

    def generate_stream(self, question: str, **keywords: Unpack[GenerateKeywords]) -> Generator[Event, None, None]:
        """Answers in events: one PassagesEvent, TokensEvents as tokens become final, at the end the Answer.

        Closing the generator cancels the call.
        """
        request = orchestrator_pb2.GenerateStreamRequest(request=requests.generate_request(question, keywords))
        return self._events(request, deadline(self._timeout_seconds, keywords.get("timeout_seconds")))

    def retrieve(self, question: str, **keywords: Unpack[RetrieveKeywords]) -> Retrieval:
        """The passages that a question retrieves, with their priors. RetrieveKeywords describes the keywords."""
        request = requests.retrieve_request(question, keywords)
        timeout = deadline(self._timeout_seconds, keywords.get("timeout_seconds"))
        with typed_errors():
            return responses.retrieval(self._stub.Retrieve(request, timeout=timeout))

    def score(self, question: str, answer: str, **keywords: Unpack[ScoreKeywords]) -> AnswerScore:
        """The log-probability of an answer, log p(y|x), marginalized over the passages."""
        request = requests.score_request(question, answer, keywords)
        timeout = deadline(self._timeout_seconds, keywords.get("timeout_seconds"))
        with typed_errors():
            return responses.answer_score(self._stub.Score(request, timeout=timeout))

    def _events(
        self, request: orchestrator_pb2.GenerateStreamRequest, timeout_seconds: float | None
    ) -> Generator[Event, None, None]:
        call = self._stub.GenerateStream(request, timeout=timeout_seconds)
        try:
            with typed_errors():
                for response in call:
                    yield responses.event(response)
        finally:
            call.cancel()


class AsyncClient:
    """The asyncio twin of Client. Use it as an async context manager, or await `close`.

    Cancelling the task that awaits a method cancels the call.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_seconds: float | None = DEFAULT_TIMEOUT_SECONDS,
        max_attempts: int = MAX_ATTEMPTS,
    ) -> None:
        self._timeout_seconds = deadline(None, timeout_seconds)
        self._channel = channel(target, retried_methods=RETRIED_METHODS, max_attempts=max_attempts)
        self._stub = orchestrator_pb2_grpc.RagServiceStub(self._channel)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection; calls at work are cancelled."""
        await self._channel.close()

    async def generate(self, question: str, **keywords: Unpack[GenerateKeywords]) -> Answer:
        """Answers a question. GenerationOptions and SourceKeywords describe the keywords."""
        request = requests.generate_request(question, keywords)
        timeout = deadline(self._timeout_seconds, keywords.get("timeout_seconds"))
        with typed_errors():
            return responses.answer(await self._stub.Generate(request, timeout=timeout))

    def generate_stream(self, question: str, **keywords: Unpack[GenerateKeywords]) -> AsyncGenerator[Event, None]:
        """Answers in events: one PassagesEvent, TokensEvents as tokens become final, at the end the Answer.

        Closing the generator cancels the call.
        """
        request = orchestrator_pb2.GenerateStreamRequest(request=requests.generate_request(question, keywords))
        return self._events(request, deadline(self._timeout_seconds, keywords.get("timeout_seconds")))

    async def retrieve(self, question: str, **keywords: Unpack[RetrieveKeywords]) -> Retrieval:
        """The passages that a question retrieves, with their priors. RetrieveKeywords describes the keywords."""
        request = requests.retrieve_request(question, keywords)
        timeout = deadline(self._timeout_seconds, keywords.get("timeout_seconds"))
        with typed_errors():
            return responses.retrieval(await self._stub.Retrieve(request, timeout=timeout))

    async def score(self, question: str, answer: str, **keywords: Unpack[ScoreKeywords]) -> AnswerScore:
        """The log-probability of an answer, log p(y|x), marginalized over the passages."""
        request = requests.score_request(question, answer, keywords)
        timeout = deadline(self._timeout_seconds, keywords.get("timeout_seconds"))
        with typed_errors():
            return responses.answer_score(await self._stub.Score(request, timeout=timeout))

    async def _events(
        self, request: orchestrator_pb2.GenerateStreamRequest, timeout_seconds: float | None
    ) -> AsyncGenerator[Event, None]:
        call = self._stub.GenerateStream(request, timeout=timeout_seconds)
        try:
            with typed_errors():
                async for response in call:
                    yield responses.event(response)
        finally:
            call.cancel()
