"""Starts the retriever: `python -m retriever_svc --model DIR --knowledge DIR`."""

from __future__ import annotations

from ragserve.serving.metrics import Metrics
from ragserve.serving.server import run, serve
from ragserve.serving.settings import load_settings
from ragserve.v1 import retriever_pb2_grpc
from retriever_svc.engine import RetrieverEngine
from retriever_svc.servicer import SERVICE_NAME, RetrieverServicer
from retriever_svc.settings import RetrieverSettings


async def main() -> int:
    """Put the service together and run it until it is told to stop."""
    settings = load_settings(RetrieverSettings)
    metrics = Metrics()
    model, knowledge = settings.model.absolute(), settings.knowledge.absolute()
    engine = RetrieverEngine(model, knowledge, options=settings.engine_options(), metrics=metrics)
    return await serve(
        settings.server,
        name="retriever",
        service_names=[SERVICE_NAME],
        register=lambda server: retriever_pb2_grpc.add_RetrieverServiceServicer_to_server(
            RetrieverServicer(engine), server
        ),
        service=engine,
        metrics=metrics,
        private_paths=engine.private_paths,
    )


if __name__ == "__main__":
    run(main)
