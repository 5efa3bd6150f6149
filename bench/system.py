"""Our side: the real generator and orchestrator as processes, asked over gRPC."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import grpc

from bench.processes import ServiceProcess, start
from bench.workload import Workload
from ragserve.v1 import common_pb2, generator_pb2, orchestrator_pb2, orchestrator_pb2_grpc

MODES = {"token": common_pb2.MODE_TOKEN, "sequence": common_pb2.MODE_SEQUENCE}
DECODINGS = {"token": orchestrator_pb2.DECODING_UNSPECIFIED, "sequence": orchestrator_pb2.DECODING_THOROUGH}
TIMEOUT_SECONDS = 3600.0


class Ragserve:
    """Generator and orchestrator; the documents come with the request, so no retriever is asked."""

    def __init__(
        self,
        model: Path,
        workload: Workload,
        logs: Path,
        *,
        threads: int,
        device: str = "cpu",
        precision: str = "float32",
        flags: Mapping[str, object] | None = None,
    ) -> None:
        """Starts both; `flags` are more settings of the generator."""
        self.precision = precision
        self._workload = workload
        own = {"model": model, "device": device, "precision": precision, **(flags or {})}
        self.generator = start("generator_svc", own, logs, threads=threads)
        downstream = {"generator": self.generator.target, "retriever": "127.0.0.1:1"}
        self.orchestrator = start("orchestrator", downstream, logs)
        self._processes: tuple[ServiceProcess, ...] = (self.generator, self.orchestrator)
        self._channel = grpc.insecure_channel(self.orchestrator.target)
        self._stub = orchestrator_pb2_grpc.RagServiceStub(self._channel)

    def wait_healthy(self) -> None:
        """Returns once both services are loaded."""
        for process in self._processes:
            process.wait_healthy()

    def generate(self, mode: str, beams: int, workload: Workload | None = None) -> tuple[list[int], dict[str, float]]:
        """The generated tokens of the best answer, and seconds by stage."""
        response = self._stub.Generate(request(mode, beams, workload or self._workload), timeout=TIMEOUT_SECONDS)
        stages = {timing.stage: timing.seconds for timing in response.timings}
        return list(response.hypotheses[0].token_ids), stages

    def widenings(self) -> float:
        """Rows of a step, so far, for which more candidates were asked."""
        return self.orchestrator.metric("ragserve_widenings_total")

    def close(self) -> None:
        """Stops both services."""
        self._channel.close()
        for process in reversed(self._processes):
            process.stop()


def request(mode: str, beams: int, workload: Workload) -> orchestrator_pb2.GenerateRequest:
    """An answer of exactly the workload's length from its documents."""
    documents = [
        generator_pb2.Document(title=workload.title, text=text, log_prior=prior)
        for text, prior in zip(workload.texts(), workload.log_priors(), strict=True)
    ]
    options = orchestrator_pb2.GenerationOptions(
        mode=MODES[mode],
        decoding=DECODINGS[mode],
        num_beams=beams,
        max_length=workload.length,
        min_length=workload.length,
    )
    return orchestrator_pb2.GenerateRequest(question=workload.question, documents=documents, options=options)
