"""Our side: the real generator and orchestrator as processes, asked over gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import grpc

from bench.processes import ServiceProcess, start
from bench.workload import QUESTION, TITLE, Workload
from ragserve.v1 import common_pb2, generator_pb2, orchestrator_pb2, orchestrator_pb2_grpc

MODES = {"token": common_pb2.MODE_TOKEN, "sequence": common_pb2.MODE_SEQUENCE}
DECODINGS = {"token": orchestrator_pb2.DECODING_UNSPECIFIED, "sequence": orchestrator_pb2.DECODING_THOROUGH}
TIMEOUT_SECONDS = 600.0


class Ragserve:
    """Generator and orchestrator; the documents come with the request, so no retriever is asked."""

    def __init__(
        self,
        model: Path,
        workload: Workload,
        logs: Path,
        *,
        threads: int,
        device: str,
        precision: str = "float32",
        limits: Mapping[str, object] | None = None,
    ) -> None:
        """Start both; `limits` are more settings of the generator."""
        self.precision = precision
        self._workload = workload
        flags = {"model": model, "device": device, "precision": precision, **(limits or {})}
        generator = start("generator_svc", flags, logs, threads=threads)
        orchestrator = start("orchestrator", {"generator": generator.target, "retriever": "127.0.0.1:1"}, logs)
        self._processes: tuple[ServiceProcess, ...] = (generator, orchestrator)
        self._channel = grpc.insecure_channel(orchestrator.target)
        self._stub = orchestrator_pb2_grpc.RagServiceStub(self._channel)

    def wait_healthy(self) -> None:
        """Returns once both services are loaded."""
        for process in self._processes:
            process.wait_healthy()

    def generate(self, mode: str, beams: int) -> tuple[list[int], dict[str, float]]:
        """The generated tokens of the best answer, and seconds by stage."""
        response = self._stub.Generate(self._request(mode, beams), timeout=TIMEOUT_SECONDS)
        stages = {timing.stage: timing.seconds for timing in response.timings}
        return list(response.hypotheses[0].token_ids), stages

    def _request(self, mode: str, beams: int) -> orchestrator_pb2.GenerateRequest:
        documents = [
            generator_pb2.Document(title=TITLE, text=text, log_prior=prior)
            for text, prior in zip(self._workload.texts(), self._workload.log_priors(), strict=True)
        ]
        options = orchestrator_pb2.GenerationOptions(
            mode=MODES[mode],
            decoding=DECODINGS[mode],
            num_beams=beams,
            max_length=self._workload.length,
            min_length=self._workload.length,
        )
        return orchestrator_pb2.GenerateRequest(question=QUESTION, documents=documents, options=options)

    def close(self) -> None:
        """Stops both services."""
        self._channel.close()
        for process in reversed(self._processes):
            process.stop()
