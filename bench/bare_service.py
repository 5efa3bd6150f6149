"""What gRPC alone costs: the in-process side behind one bare method of grpc.aio, with no queue, checks or metrics.

`python -m bench.bare_service --model DIR --knowledge DIR --k 5 --threads 1` speaks enough of RetrieverService for
the benchmark: queries of one request are encoded and searched in one thread beside the event loop.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from bench.sides import Asked, InProcess
from ragserve.v1 import common_pb2, retriever_pb2, retriever_pb2_grpc

Request = retriever_pb2.RetrieverServiceRetrieveRequest
Response = retriever_pb2.RetrieverServiceRetrieveResponse


class Bare(retriever_pb2_grpc.RetrieverServiceServicer):
    """Retrieve, as short as it can be written."""

    def __init__(self, inner: InProcess) -> None:
        self._inner = inner
        self._thread = ThreadPoolExecutor(1)

    async def Retrieve(self, request: Request, context: Any) -> Response:  # noqa: N802
        """The nearest passages of each query."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, request)

    def _answer(self, request: Request) -> Response:
        queries: list[Asked] = [
            query.text if query.HasField("text") else np.frombuffer(query.vector, "<f4") for query in request.queries
        ]
        return Response(results=[self._result(*found) for found in self._inner.batch(queries)])

    def _result(self, positions: Any, scores: Any) -> retriever_pb2.QueryResult:
        passages = zip(self._inner.rows.passages(positions), scores.tolist(), strict=True)
        found = [
            common_pb2.ScoredPassage(passage=common_pb2.Passage(id=p.id, title=p.title, text=p.text), score=score)
            for p, score in passages
        ]
        return retriever_pb2.QueryResult(passages=found)


async def serve(inner: InProcess, port: int) -> None:
    """Serves until killed; healthy at once."""
    server = grpc.aio.server()
    retriever_pb2_grpc.add_RetrieverServiceServicer_to_server(Bare(inner), server)
    status = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(status, server)
    await status.set("", health_pb2.HealthCheckResponse.SERVING)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def main(argv: Sequence[str] | None = None) -> None:
    """Load and serve."""
    parser = argparse.ArgumentParser(prog="python -m bench.bare_service", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--knowledge", type=Path, required=True)
    parser.add_argument("--k", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--server.port", dest="port", type=int, required=True)
    parser.add_argument("--server.metrics-port", dest="metrics_port", type=int, help="not served")
    options = parser.parse_args(argv)
    inner = InProcess(options.model, options.knowledge, options.k, options.threads, options.device)
    uvloop.run(serve(inner, options.port))


if __name__ == "__main__":
    main()
