"""Who answers in a retrieval benchmark: this system over gRPC, the same parts called in-process, and bm25s."""

from __future__ import annotations

import asyncio
import copy
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import bm25s
import grpc
import numpy as np

from bench.processes import ServiceProcess
from ragserve.v1 import common_pb2, retriever_pb2, retriever_pb2_grpc
from retriever_svc.device import Device
from retriever_svc.encoder import TextEncoder
from retriever_svc.index import FaissIndex, IndexSpec
from retriever_svc.knowledge import KnowledgeBase
from retriever_svc.ranking import find_nearest
from retriever_svc.rows import Rows
from retriever_svc.types import Float32

TOTAL = "total"
MEMORY_BYTES = 2 * 2**30
ANY_PADDING = 2**31  # a pass holds whatever fits: as who calls the session with the batch at hand
Asked: TypeAlias = str | Float32  # a text, or a query vector [dim]
Found: TypeAlias = list[list[str]]  # ids of the passages of each query, best first


class Side(Protocol):
    """Someone who answers."""

    name: str
    remote: bool  # a service, to which several requests can be on their way; else a call in this process

    def one(self, query: Asked) -> Any:
        """Answer one query; what `ids` reads."""

    def many(self, batches: Sequence[Sequence[Asked]], in_flight: int) -> list[Any]:
        """Answer batches, `in_flight` of them at a time where the side can; what `ids` reads, in their order."""

    def ids(self, answer: Any) -> Found:
        """What was found; not timed."""

    def close(self) -> None:
        """Let go of everything."""


async def in_flight_map(
    call: Callable[[Sequence[Asked]], Awaitable[Any]], batches: Sequence[Sequence[Asked]], in_flight: int
) -> list[Any]:
    """Results of the calls in order; each of `in_flight` clients sends its next batch when it has its answer."""
    answers: list[Any] = [None] * len(batches)
    todo = iter(range(len(batches)))

    async def client() -> None:
        for number in todo:
            answers[number] = await call(batches[number])

    await asyncio.gather(*(client() for _ in range(in_flight)))
    return answers


@dataclass
class Ragserve:
    """The retriever process, over gRPC. An answer is read as a caller would: ids, titles, texts and scores."""

    process: ServiceProcess
    k: int
    kind: common_pb2.SearchKind = common_pb2.SEARCH_KIND_DENSE
    name: str = "ragserve"
    remote: bool = True
    # Of every single question asked as text: the service's answer and the seconds that it took.
    timed: list[tuple[retriever_pb2.RetrieverServiceRetrieveResponse, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._channel = grpc.insecure_channel(self.process.target)
        self._stub = retriever_pb2_grpc.RetrieverServiceStub(self._channel)
        self._runner = asyncio.Runner()
        self._aio, self._aio_stub = self._runner.run(self._connect())

    async def _connect(self) -> tuple[Any, Any]:
        channel = grpc.aio.insecure_channel(self.process.target)
        return channel, retriever_pb2_grpc.RetrieverServiceStub(channel)

    def _request(self, queries: Sequence[Asked]) -> retriever_pb2.RetrieverServiceRetrieveRequest:
        messages = [
            retriever_pb2.Query(text=query)
            if isinstance(query, str)
            else retriever_pb2.Query(vector=query.astype("<f4").tobytes())
            for query in queries
        ]
        options = common_pb2.SearchOptions(kind=self.kind)
        return retriever_pb2.RetrieverServiceRetrieveRequest(queries=messages, k=self.k, options=options)

    def one(self, query: Asked) -> Any:
        """One request with one query."""
        begin = time.perf_counter()
        response = self._stub.Retrieve(self._request([query]))
        found = read(response)
        if isinstance(query, str):
            self.timed.append((response, time.perf_counter() - begin))
        return found

    def stage_medians(self) -> dict[str, float]:
        """Median seconds of each stage of a single question; what the service does not time is the transport's."""
        if not self.timed:
            return {}
        runs = [
            {**{timing.stage: timing.seconds for timing in response.timings}, TOTAL: seconds}
            for response, seconds in self.timed
        ]
        rest = [2 * stages[TOTAL] - sum(stages.values()) for stages in runs]
        names = [name for name in runs[0] if name != TOTAL]
        medians = {name: statistics.median(stages[name] for stages in runs) for name in names}
        return {**medians, "transport and conversion": statistics.median(rest)}

    def many(self, batches: Sequence[Sequence[Asked]], in_flight: int) -> list[Any]:
        """Requests of one batch each, from asyncio."""

        async def call(queries: Sequence[Asked]) -> Any:
            return read(await self._aio_stub.Retrieve(self._request(queries)))

        return self._runner.run(in_flight_map(call, batches, in_flight))

    def ids(self, answer: Any) -> Found:
        """Ids of what was read."""
        return [[passage[0] for passage in passages] for passages in answer]

    def close(self) -> None:
        """Close channels and stop the process, if another side has not."""
        self._runner.run(self._aio.close())
        self._runner.close()
        self._channel.close()
        self.process.stop()


def read(response: retriever_pb2.RetrieverServiceRetrieveResponse) -> list[list[tuple[str, str, str, float]]]:
    """Id, title, text and score of the passages of each query."""
    return [
        [(hit.passage.id, hit.passage.title, hit.passage.text, hit.score) for hit in result.passages]
        for result in response.results
    ]


@dataclass
class InProcess:
    """The service's ONNX session, its FAISS index and exact ranking, called here. No passage is fetched.

    The session is called with the batch at hand, sorted by length and padded, and the index is FAISS's alone. With
    `max_padding` None the batch is encoded in the passes that the service would make of it; with `codes` the index has
    the service's 8-bit codes.
    """

    model: Path
    knowledge: Path
    k: int
    threads: int
    device: Device = "cpu"
    factory: str = "Flat"
    name: str = "in-process"
    max_padding: int | None = ANY_PADDING
    codes: bool = False
    remote: bool = False

    def __post_init__(self) -> None:
        self.rows: Rows = KnowledgeBase.open(self.knowledge).rows(MEMORY_BYTES)
        self.encoder = TextEncoder.load(self.model / "query_encoder", device=self.device, threads=self.threads)
        self.index = self._build()

    def _build(self) -> FaissIndex:
        spec = IndexSpec(self.factory, device=self.device, threads=1, build_threads=self.threads, codes=self.codes)
        return FaissIndex.build(self.rows, spec)

    def one(self, query: Asked) -> Any:
        """Encode and search for one query."""
        return self.batch([query])

    def many(self, batches: Sequence[Sequence[Asked]], in_flight: int) -> list[Any]:
        """One batch after the other."""
        return [self.batch(batch) for batch in batches]

    def batch(self, queries: Sequence[Asked]) -> Any:
        """Positions and scores of each query."""
        texts = [query for query in queries if isinstance(query, str)]
        vectors = self._encode(texts) if texts else np.stack([np.asarray(query) for query in queries])
        return find_nearest(self.index, self.rows, vectors, self.k)

    def as_the_service(self) -> InProcess:
        """The same parts as the service uses them, as a side of its own."""
        other = copy.copy(self)
        other.name, other.max_padding, other.codes = f"{self.name}, ragserve's passes and codes", None, True
        other.index = other._build()
        return other

    def _encode(self, texts: Sequence[str]) -> Float32:
        return self.encoder.encode_tokens(self.encoder.tokenize_queries(texts), self.max_padding)

    def ids(self, answer: Any) -> Found:
        """Ids at the positions."""
        return [[passage.id for passage in self.rows.passages(positions)] for positions, _ in answer]

    def close(self) -> None:
        """Nothing is held but memory."""


@dataclass
class Bm25s:
    """bm25s over titles and texts, called here; its own English stop words, no stemmer, Lucene's BM25."""

    rows: Rows
    k: int
    name: str = "bm25s"
    remote: bool = False

    def __post_init__(self) -> None:
        passages = self.rows.passages(np.arange(self.rows.size))
        self._ids = [passage.id for passage in passages]
        self._index = bm25s.BM25()
        texts = [f"{passage.title} {passage.text}" for passage in passages]
        self._index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)

    def one(self, query: Asked) -> Any:
        """Tokenize and search for one question."""
        return self.batch([query])

    def many(self, batches: Sequence[Sequence[Asked]], in_flight: int) -> list[Any]:
        """One batch after the other."""
        return [self.batch(batch) for batch in batches]

    def batch(self, queries: Sequence[Asked]) -> Any:
        """Positions [n_queries, k]."""
        tokens = bm25s.tokenize([str(query) for query in queries], show_progress=False)
        return self._index.retrieve(tokens, k=self.k, show_progress=False).documents

    def ids(self, answer: Any) -> Found:
        """Ids at the positions."""
        return [[self._ids[position] for position in row] for row in answer]

    def close(self) -> None:
        """Nothing is held but memory."""
