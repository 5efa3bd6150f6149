"""A real retriever on a small knowledge base, and a plain dictionary that says what it must hold."""

from __future__ import annotations

import json
import random
import re
import time
import urllib.request
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest

from bench.processes import ServiceProcess, start
from ragserve.errors import RagserveError
from ragserve.serving.status import error_from_rpc
from ragserve.v1 import common_pb2, retriever_pb2, retriever_pb2_grpc
from retriever_svc.build import build_knowledge_base
from retriever_svc.knowledge import KnowledgeBase
from retriever_svc.live.writer import KnowledgeWriter
from retriever_svc.loading import RetrievalOptions
from retriever_svc.types import Passage
from tests.retriever_svc.models import DIMENSION, write_model
from tests.retriever_svc.sources import WHOLE
from tests.tiny import tiny_passages, write_jsonl

TIMEOUT_SECONDS = 60.0
Vector = np.ndarray
# What one version holds: text and vector by id.
Content = Mapping[str, tuple[str, Vector]]


@dataclass(frozen=True)
class Home:
    """A model directory and a knowledge base that replicas share."""

    model: Path
    knowledge: Path
    logs: Path

    @classmethod
    def build(cls, directory: Path, n_passages: int = 40) -> Home:
        """A tiny model, and a knowledge base that it embedded."""
        model = write_model(directory / "model", own_passage_encoder=False)
        source = write_jsonl(directory / "passages.jsonl", tiny_passages(n_passages, seed=5))
        build_knowledge_base(
            source, directory / "kb", model, options=RetrievalOptions(device="cpu", threads=1), build=WHOLE
        )
        return cls(model, directory / "kb", directory / "logs")

    def grow(self, n_passages: int) -> None:
        """Commit passages `grown 0` and so on with random vectors, without a retriever."""
        vectors = np.random.default_rng(1).normal(size=(n_passages, DIMENSION)).astype(np.float32)
        passages = [Passage(f"grown {number}", "", f"text {number}") for number in range(n_passages)]
        KnowledgeWriter(self.knowledge, KnowledgeBase.open(self.knowledge).encoder).upsert(passages, vectors)

    def replica(self, **flags: object) -> Replica:
        """A running retriever; flags as `refresh_seconds=1`."""
        paths = {"model": self.model, "knowledge": self.knowledge, "threads": 1, "device": "cpu"}
        return Replica(start("retriever_svc", {**paths, **flags}, self.logs).wait_healthy())


class Replica:
    """A retriever process and its stub."""

    def __init__(self, process: ServiceProcess) -> None:
        self.process = process
        self.channel = grpc.insecure_channel(process.target)
        self.stub = retriever_pb2_grpc.RetrieverServiceStub(self.channel)

    def upsert(self, passages: Iterable[retriever_pb2.NewPassage]) -> retriever_pb2.UpsertPassagesResponse:
        """Adds or replaces passages in one commit."""
        requests = iter([retriever_pb2.UpsertPassagesRequest(passages=list(passages))])
        return self.stub.UpsertPassages(requests, timeout=TIMEOUT_SECONDS)

    def search(self, vector: Vector, k: int, version: int = 0) -> retriever_pb2.RetrieverServiceRetrieveResponse:
        """The k passages nearest to a vector."""
        query = retriever_pb2.Query(vector=vector.astype("<f4").tobytes())
        request = retriever_pb2.RetrieverServiceRetrieveRequest(queries=[query], k=k, knowledge_version=version)
        return self.stub.Retrieve(request, timeout=TIMEOUT_SECONDS)

    def info(self) -> retriever_pb2.RetrieverServiceGetInfoResponse:
        """What is loaded."""
        return self.stub.GetInfo(retriever_pb2.RetrieverServiceGetInfoRequest(), timeout=TIMEOUT_SECONDS)

    def delete(self, ids: Sequence[str]) -> retriever_pb2.DeletePassagesResponse:
        """Deletes passages."""
        return self.stub.DeletePassages(retriever_pb2.DeletePassagesRequest(ids=ids), timeout=TIMEOUT_SECONDS)

    def get(self, ids: Sequence[str], version: int = 0) -> dict[str, str]:
        """Texts by id."""
        request = retriever_pb2.GetPassagesRequest(ids=ids, knowledge_version=version)
        found = self.stub.GetPassages(request, timeout=TIMEOUT_SECONDS).passages
        return {passage.id: passage.text for passage in found}

    def rollback(self, version: int) -> int:
        """Goes back; the new version."""
        request = retriever_pb2.RollbackRequest(knowledge_version=version)
        return self.stub.Rollback(request, timeout=TIMEOUT_SECONDS).knowledge_version

    def versions(self) -> list[retriever_pb2.KnowledgeVersion]:
        """The versions that can be read."""
        return list(self.stub.ListVersions(retriever_pb2.ListVersionsRequest(), timeout=TIMEOUT_SECONDS).versions)

    def compact(self, keep_versions: int, keep_seconds: float = 0.0) -> retriever_pb2.CompactResponse:
        """Compacts."""
        request = retriever_pb2.CompactRequest(keep_versions=keep_versions, keep_seconds=keep_seconds)
        return self.stub.Compact(request, timeout=TIMEOUT_SECONDS)

    def refresh(self) -> int:
        """Looks for a newer version; the newest one loaded then."""
        return self.stub.Refresh(retriever_pb2.RefreshRequest(), timeout=TIMEOUT_SECONDS).knowledge_version

    def metric(self, name: str) -> float:
        """A value of the metrics port, labels and all; 0 where it is not there yet."""
        url = f"http://127.0.0.1:{self.process.metrics_port}/metrics"
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response:
            found = re.search(rf"^{re.escape(name)} (\S+)$", response.read().decode(), re.MULTILINE)
        return float(found.group(1)) if found else 0.0

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.channel.close()

    def stop(self) -> None:
        """SIGTERM; fails unless it ends well."""
        self.channel.close()
        assert self.process.stop() == 0, self.process.log_text()[-4000:]


def eventually(check: Callable[[], object], seconds: float = TIMEOUT_SECONDS) -> float:
    """Ask again until the check holds; the seconds that it took. Fails with the last answer when it never does."""
    began = time.monotonic()
    while not (answer := check()):
        assert time.monotonic() - began < seconds, f"still {answer!r} after {seconds:.0f} s"
        time.sleep(0.05)
    return time.monotonic() - began


def refused(call: Callable[[], object]) -> RagserveError:
    """The error that a call ends with, as our client reads it."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return error_from_rpc(caught.value)


def new_passage(
    identifier: str, text: str, vector: Vector | None = None, **metadata: object
) -> retriever_pb2.NewPassage:
    """A passage to write."""
    passage = common_pb2.Passage(
        id=identifier, title=f"title of {identifier}", text=text, metadata_json=json.dumps(metadata) if metadata else ""
    )
    raw = b"" if vector is None else vector.astype("<f4").tobytes()
    return retriever_pb2.NewPassage(passage=passage, vector=raw)


def scores(content: Content, query: Vector) -> dict[str, float]:
    """The exact score of every passage, as float32."""
    exact = query.astype(np.float64)
    return {
        identifier: float(np.float32(vector.astype(np.float64) @ exact)) for identifier, (_, vector) in content.items()
    }


def nearest(content: Content, query: Vector, k: int) -> list[tuple[str, str]]:
    """Brute force: id and text of the k best, best first."""
    of = scores(content, query)
    return [(identifier, content[identifier][0]) for identifier in sorted(of, key=lambda one: -of[one])[:k]]


def random_vector(rng: random.Random) -> Vector:
    """A vector whose scores are hardly ever equal to those of another."""
    return np.random.default_rng(rng.getrandbits(32)).normal(size=DIMENSION).astype(np.float32)


def found(response: retriever_pb2.RetrieverServiceRetrieveResponse) -> list[tuple[str, str]]:
    """Id and text of the passages of the first query, best first."""
    return [(each.passage.id, each.passage.text) for each in response.results[0].passages]


@dataclass
class Model:
    """What the knowledge base must hold: its content now, and that of every version acknowledged."""

    content: dict[str, tuple[str, Vector]]
    version: int
    history: dict[int, Content] = field(default_factory=dict)

    def committed(self, version: int, content: dict[str, tuple[str, Vector]]) -> None:
        """A write was acknowledged."""
        self.content, self.version = content, version
        self.history[version] = dict(content)
