"""The running services on one knowledge base, into which versions of the world are written while they answer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc

from bench.processes import ROOT, running, start
from ragserve.client import Client
from ragserve.results import Answer
from ragserve.v1 import common_pb2, retriever_pb2, retriever_pb2_grpc

MODEL, BASE = ROOT / "demo/model", ROOT / "demo/kb"
DOCS = 5
TIMEOUT_SECONDS = 600.0


class System:
    """Asked through the orchestrator, written to through the retriever."""

    def __init__(self, client: Client, retriever: retriever_pb2_grpc.RetrieverServiceStub) -> None:
        self._client = client
        self._retriever = retriever

    def publish(self, source: Path) -> int:
        """Upsert JSON lines of passages in one commit, which is the hot swap; the number of the new version."""
        rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
        passages = [retriever_pb2.NewPassage(passage=common_pb2.Passage(**row)) for row in rows]
        request = retriever_pb2.UpsertPassagesRequest(passages=passages)
        return int(self._retriever.UpsertPassages(iter([request]), timeout=TIMEOUT_SECONDS).knowledge_version)

    def loaded_versions(self) -> list[int]:
        """The versions that a question may pin, oldest first."""
        request = retriever_pb2.RetrieverServiceGetInfoRequest()
        return list(self._retriever.GetInfo(request, timeout=TIMEOUT_SECONDS).loaded_versions)

    def ask(self, question: str, version: int, mode: str) -> Answer:
        """Greedy, five passages of a pinned version (0: the newest). mode: "token" or "sequence"."""
        return self._client.generate(
            question,
            mode="sequence" if mode == "sequence" else "token",
            docs=DOCS,
            beams=1,
            knowledge_version=version,
        )


@contextmanager
def serving(directory: Path, base: Path = BASE, *, threads: int = 2) -> Iterator[System]:
    """The three services as processes on a copy of the knowledge base `base`; files and logs go to `directory`."""
    knowledge, logs = directory / "kb", directory / "logs"
    shutil.copytree(base, knowledge)
    retriever = start("retriever_svc", {"model": MODEL, "knowledge": knowledge, "threads": 1}, logs)
    generator = start("generator_svc", {"model": MODEL}, logs, threads=threads)
    orchestrator = start("orchestrator", {"retriever": retriever.target, "generator": generator.target}, logs)
    with (
        running(retriever, generator, orchestrator),
        Client(orchestrator.target, timeout_seconds=TIMEOUT_SECONDS) as client,
        grpc.insecure_channel(retriever.target) as channel,
    ):
        yield System(client, retriever_pb2_grpc.RetrieverServiceStub(channel))
