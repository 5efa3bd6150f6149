"""Starts the generator: `python -m generator_svc --model DIR`."""

from __future__ import annotations

from generator_svc.settings import GeneratorSettings
from ragserve.serving.cores import spin_briefly
from ragserve.serving.memory import keep_few_products
from ragserve.serving.metrics import Metrics
from ragserve.serving.server import run, serve
from ragserve.serving.settings import load_settings
from ragserve.v1 import generator_pb2_grpc


async def main() -> int:
    """Put the service together and run it until it is told to stop."""
    settings = load_settings(GeneratorSettings)
    spin_briefly()
    keep_few_products()
    # Only now: a wrong flag and --help need not wait for torch.
    from generator_svc.engine import GeneratorEngine  # noqa: PLC0415
    from generator_svc.servicer import SERVICE_NAME, GeneratorServicer  # noqa: PLC0415

    metrics = Metrics()
    engine = GeneratorEngine(settings.model, settings.engine_options(), metrics)
    return await serve(
        settings.server,
        name="generator",
        service_names=[SERVICE_NAME],
        register=lambda server: generator_pb2_grpc.add_GeneratorServiceServicer_to_server(
            GeneratorServicer(engine), server
        ),
        service=engine,
        metrics=metrics,
    )


if __name__ == "__main__":
    run(main)
