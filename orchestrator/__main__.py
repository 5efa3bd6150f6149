"""Starts the orchestrator: `python -m orchestrator --retriever HOST:PORT --generator HOST:PORT`."""

from __future__ import annotations

from orchestrator.downstream.clients import Downstream
from orchestrator.pipeline import Pipeline
from orchestrator.servicer import SERVICE_NAME, RagServicer
from orchestrator.settings import OrchestratorSettings
from ragserve.serving.metrics import Metrics
from ragserve.serving.server import run, serve
from ragserve.serving.settings import load_settings
from ragserve.v1 import orchestrator_pb2_grpc


async def main() -> int:
    """Put the service together and run it until it is told to stop."""
    settings = load_settings(OrchestratorSettings)
    metrics = Metrics()
    downstream = Downstream(settings, metrics)
    servicer = RagServicer(
        Pipeline(downstream.retriever, downstream.generator, settings, metrics), settings.default_timeout_seconds
    )
    return await serve(
        settings.server,
        name="orchestrator",
        service_names=[SERVICE_NAME],
        register=lambda server: orchestrator_pb2_grpc.add_RagServiceServicer_to_server(servicer, server),
        service=downstream,
        metrics=metrics,
    )


if __name__ == "__main__":
    run(main)
