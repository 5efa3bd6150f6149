"""The Python client of RagService, blocking and asyncio."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from types import TracebackType
from typing import Any, Self, Unpack

from google.protobuf.message import Message

from ragserve import arguments, requests, responses
from ragserve.calls import TimeLeft, deadline
from ragserve.connection import AsyncConnection, Connection
from ragserve.failures import ORCHESTRATOR
from ragserve.options import GenerateKeywords, RetrieveKeywords, ScoreKeywords
from ragserve.responses import Event
from ragserve.results import Answer, AnswerScore, Retrieval
from ragserve.serving.channel import MAX_ATTEMPTS
from ragserve.v1 import orchestrator_pb2, orchestrator_pb2_grpc

DEFAULT_TIMEOUT_SECONDS = 60.0
MOST_ATTEMPTS = 5  # gRPC's own limit
# Streams are not tried again: the caller may have seen events already.
RETRIED_METHODS = tuple(f"/ragserve.v1.RagService/{method}" for method in ("Generate", "Score", "Retrieve"))


class Client:
    """A blocking client; threads may share it. Use it as a context manager, or call `close`.

    target: "host:port", or a gRPC name such as "dns:///orchestrator:50051". timeout_seconds: deadline of each
    call; None for none. max_attempts: how often a unary call is tried while the service is unavailable, 1 to 5.

    All methods raise the errors of `ragserve.errors` only: InvalidInputError for an argument of the wrong type or
    beyond a limit, FailedPreconditionError after `close`. What the caller's own iterables raise passes unchanged.
    The connection is made at the first call, so a client may be made before a process is forked, but not used.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_seconds: float | None = DEFAULT_TIMEOUT_SECONDS,
        max_attempts: int = MAX_ATTEMPTS,
    ) -> None:
        self._timeout_seconds = arguments.seconds("timeout_seconds", timeout_seconds)
        attempts = arguments.whole("max_attempts", "max_attempts", max_attempts, most=MOST_ATTEMPTS, least=1)
        make_stub = orchestrator_pb2_grpc.RagServiceStub
        self._connection = Connection(make_stub, ORCHESTRATOR, target, RETRIED_METHODS, attempts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection. Calls at work are cancelled, later ones raise FailedPreconditionError."""
        self._connection.close()

    def generate(self, question: str, **keywords: Unpack[GenerateKeywords]) -> Answer:
        """Answers a question. docs/client.md lists the keywords; GenerationOptions and SourceKeywords describe them."""
        request = requests.generate_request(question, keywords)
        return responses.answer(self._call("Generate", request, keywords))

    def generate_stream(self, question: str, **keywords: Unpack[GenerateKeywords]) -> Generator[Event, None, None]:
        """Answers in events: one PassagesEvent, TokensEvents as tokens become final, at the end the Answer.

        Closing the generator cancels the call.
        """
        request = orchestrator_pb2.GenerateStreamRequest(request=requests.generate_request(question, keywords))
        return self._events(request, deadline(self._timeout_seconds, keywords.get("timeout_seconds")))

    def retrieve(self, question: str, **keywords: Unpack[RetrieveKeywords]) -> Retrieval:
        """The passages that a question retrieves, with their priors. RetrieveKeywords describes the keywords."""
        request = requests.retrieve_request(question, keywords)
        return responses.retrieval(self._call("Retrieve", request, keywords))

    def score(self, question: str, answer: str, **keywords: Unpack[ScoreKeywords]) -> AnswerScore:
        """The log-probability of an answer, log p(y|x), marginalized over the passages."""
        request = requests.score_request(question, answer, keywords)
        return responses.answer_score(self._call("Score", request, keywords))

    def _call(self, method: str, request: Message, keywords: RetrieveKeywords) -> Any:
        left = TimeLeft.of(deadline(self._timeout_seconds, keywords.get("timeout_seconds")))
        return self._connection.call(method, request, left)

    def _events(
        self, request: orchestrator_pb2.GenerateStreamRequest, timeout_seconds: float | None
    ) -> Generator[Event, None, None]:
        with closing(self._connection.stream("GenerateStream", request, TimeLeft.of(timeout_seconds))) as events:
            for response in events:
                yield responses.event(response)


class AsyncClient:
    """The asyncio twin of Client. Use it as an async context manager, or await `close`.

    Cancelling the task that awaits a method cancels the call; only then does CancelledError come out. The client may
    be made outside of an event loop, and used in several: each loop gets a connection of its own.
    """

    def __init__(
        self,
        target: str,
        *,
        timeout_seconds: float | None = DEFAULT_TIMEOUT_SECONDS,
        max_attempts: int = MAX_ATTEMPTS,
    ) -> None:
        self._timeout_seconds = arguments.seconds("timeout_seconds", timeout_seconds)
        attempts = arguments.whole("max_attempts", "max_attempts", max_attempts, most=MOST_ATTEMPTS, least=1)
        make_stub = orchestrator_pb2_grpc.RagServiceStub
        self._connection = AsyncConnection(make_stub, ORCHESTRATOR, target, RETRIED_METHODS, attempts)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection. Calls at work are cancelled, later ones raise FailedPreconditionError."""
        await self._connection.close()

    async def generate(self, question: str, **keywords: Unpack[GenerateKeywords]) -> Answer:
        """Answers a question. docs/client.md lists the keywords; GenerationOptions and SourceKeywords describe them."""
        request = requests.generate_request(question, keywords)
        return responses.answer(await self._call("Generate", request, keywords))

    def generate_stream(self, question: str, **keywords: Unpack[GenerateKeywords]) -> AsyncGenerator[Event, None]:
        """Answers in events: one PassagesEvent, TokensEvents as tokens become final, at the end the Answer.

        Closing the generator cancels the call.
        """
        request = orchestrator_pb2.GenerateStreamRequest(request=requests.generate_request(question, keywords))
        return self._events(request, deadline(self._timeout_seconds, keywords.get("timeout_seconds")))

    async def retrieve(self, question: str, **keywords: Unpack[RetrieveKeywords]) -> Retrieval:
        """The passages that a question retrieves, with their priors. RetrieveKeywords describes the keywords."""
        request = requests.retrieve_request(question, keywords)
        return responses.retrieval(await self._call("Retrieve", request, keywords))

    async def score(self, question: str, answer: str, **keywords: Unpack[ScoreKeywords]) -> AnswerScore:
        """The log-probability of an answer, log p(y|x), marginalized over the passages."""
        request = requests.score_request(question, answer, keywords)
        return responses.answer_score(await self._call("Score", request, keywords))

    async def _call(self, method: str, request: Message, keywords: RetrieveKeywords) -> Any:
        left = TimeLeft.of(deadline(self._timeout_seconds, keywords.get("timeout_seconds")))
        return await self._connection.call(method, request, left)

    async def _events(
        self, request: orchestrator_pb2.GenerateStreamRequest, timeout_seconds: float | None
    ) -> AsyncGenerator[Event, None]:
        async with aclosing(self._connection.stream("GenerateStream", request, TimeLeft.of(timeout_seconds))) as events:
            async for response in events:
                yield responses.event(response)
