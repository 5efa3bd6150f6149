"""A tiny service on the shared runtime: RetrieverService with behaviour chosen by the query's text.

Run as a program it is the process that the signal tests stop: `python tests/serving/echo.py PORT METRICS_PORT`.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from ragserve import errors
from ragserve.serving.metrics import Metrics
from ragserve.serving.server import run, serve
from ragserve.serving.settings import ServerSettings
from ragserve.v1 import generator_pb2, generator_pb2_grpc, retriever_pb2, retriever_pb2_grpc

SERVICE_NAMES = (
    retriever_pb2.DESCRIPTOR.services_by_name["RetrieverService"].full_name,
    generator_pb2.DESCRIPTOR.services_by_name["GeneratorService"].full_name,
)
RETRIEVE = "/ragserve.v1.RetrieverService/Retrieve"

ERRORS: dict[str, Exception] = {
    "invalid": errors.InvalidInputError("queries", "say something"),
    "not_found": errors.NotFoundError("no version 7", field="knowledge_version"),
    "precondition": errors.FailedPreconditionError("the index is empty"),
    "aborted": errors.AbortedError("somebody else wrote"),
    "exhausted": errors.ResourceExhaustedError("the queue is full", retry_after_seconds=1.5),
    "unavailable": errors.UnavailableError("gone"),
    "deadline": errors.DeadlineExceededError("too late"),
    "data_loss": errors.DataLossError("checksum of model.onnx", field="model.onnx"),
    "unauthenticated": errors.UnauthenticatedError("who?"),
    "denied": errors.PermissionDeniedError("not you"),
    "internal": errors.InternalError("secret text"),
    "bug": ZeroDivisionError("secret text"),
    "long": errors.InvalidInputError("queries", "漢" * 100_000),
    "broken": errors.InvalidInputError("queries", "text \ud800"),
}


def _enlarged(text: str) -> str:
    """The text; as many letters as a text "large N" says."""
    return "x" * int(text.removeprefix("large ")) if text.startswith("large ") else text


@dataclass
class Echo(retriever_pb2_grpc.RetrieverServiceServicer, generator_pb2_grpc.GeneratorServiceServicer):
    """Raises the error a query names, waits the seconds a query says, or echoes its text."""

    entered: asyncio.Event = field(default_factory=asyncio.Event)
    closed: list[str] = field(default_factory=list)

    async def Retrieve(self, request: Any, context: Any) -> Any:  # noqa: N802
        self.entered.set()
        text = request.queries[0].text if request.queries else ""
        if text in ERRORS:
            raise ERRORS[text]
        if text == "abort":
            await context.abort(grpc.StatusCode.NOT_FOUND, "aborted")
        if text == "peer":
            text = context.peer()
        if text.startswith("sleep "):
            await asyncio.sleep(float(text.removeprefix("sleep ")))
        if text == "share of objects that garbage collection leaves out":
            text = str(gc.get_freeze_count() / (gc.get_freeze_count() + len(gc.get_objects())))
        result = retriever_pb2.QueryResult(decoded_query=_enlarged(text))
        return retriever_pb2.RetrieverServiceRetrieveResponse(results=[result])

    async def Decode(self, request_iterator: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:  # noqa: N802
        try:
            async for request in request_iterator:
                self.entered.set()
                question = request.open.question
                if question in ERRORS:
                    raise ERRORS[question]
                rendered = generator_pb2.RenderedSequence(text=_enlarged(question))
                yield generator_pb2.DecodeResponse(render=generator_pb2.RenderResult(sequences=[rendered]))
        finally:
            self.closed.append("decode")

    async def join(self, request_iterator: AsyncIterator[Any], context: Any) -> Any:
        return retriever_pb2.Query(text="".join([request.text async for request in request_iterator]))

    async def split(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for character in request.text:
            yield retriever_pb2.Query(text=character)

    async def write(self, request: Any, context: Any) -> None:
        for character in request.text:
            await context.write(retriever_pb2.Query(text=character))

    def register(self, server: Any) -> None:
        retriever_pb2_grpc.add_RetrieverServiceServicer_to_server(self, server)
        generator_pb2_grpc.add_GeneratorServiceServicer_to_server(self, server)
        codec = (retriever_pb2.Query.FromString, retriever_pb2.Query.SerializeToString)
        handlers = {
            "Join": grpc.stream_unary_rpc_method_handler(self.join, *codec),
            "Split": grpc.unary_stream_rpc_method_handler(self.split, *codec),
            "Write": grpc.unary_stream_rpc_method_handler(self.write, *codec),
        }
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("echo.Other", handlers)])


@dataclass(frozen=True)
class Life:
    """Start and stop of the process; `how` is ready, broken, buggy or slow."""

    how: str = "ready"

    async def start(self) -> None:
        if self.how == "broken":
            raise errors.InvalidInputError("model", "no such directory: /nowhere")
        if self.how == "buggy":
            raise ZeroDivisionError
        if self.how == "slow":
            await asyncio.to_thread(time.sleep, 60)

    async def stop(self) -> None:
        print("service stopped", threading.current_thread() is threading.main_thread(), flush=True)


def settings(**changes: Any) -> ServerSettings:
    return ServerSettings(**{"port": 0, "metrics_port": 0, "grace_seconds": 5, **changes})


async def main(port: int, metrics_port: int, how: str, grace: float) -> int:
    echo = Echo()
    return await serve(
        settings(port=port, metrics_port=metrics_port, grace_seconds=grace),
        name="echo",
        service_names=SERVICE_NAMES,
        register=echo.register,
        service=Life(how),
        metrics=Metrics(),
    )


if __name__ == "__main__":
    arguments = sys.argv[1:]
    run(lambda: main(int(arguments[0]), int(arguments[1]), arguments[2], float(arguments[3])))
