"""Milvus Lite as a peer: its own server process on loopback, asked through pymilvus."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pymilvus import AsyncMilvusClient, DataType, MilvusClient, MilvusException

from bench.processes import ROOT, clean_environment, free_ports
from bench.sides import Asked, Found, in_flight_map
from retriever_svc.rows import Rows

COLLECTION = "passages"
START_SECONDS = 60.0
INSERTED_ROWS = 1_000  # at a time
TEXT_BYTES = 65_535  # the most a VARCHAR of Milvus holds
# pymilvus pings every ten seconds, and Milvus Lite's server drops clients that ping so often.
CHANNEL = {"grpc.keepalive_time_ms": 600_000}
METRIC = {"metric_type": "IP", "params": {}}


class MilvusServer:
    """`milvus-lite server` with the passages of a knowledge base under a FLAT index of inner products."""

    def __init__(self, rows: Rows, *, threads: int) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="bench-milvus-")
        (port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{port}"
        directory = Path(self._directory.name)
        arguments = ["--data-dir", str(directory / "data"), "--host", "127.0.0.1", "--port", str(port)]
        with (directory / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "milvus_lite", "server", *arguments],
                cwd=ROOT,
                env=clean_environment(threads),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._fill(self._connect(directory / "log"), rows)

    def _connect(self, log: Path) -> MilvusClient:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return MilvusClient(self.uri, timeout=5, grpc_options=CHANNEL)
            except MilvusException as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.stop()
                    raise RuntimeError(f"milvus-lite did not start: {log.read_text(encoding='utf-8')}") from error
                time.sleep(0.2)

    @staticmethod
    def _fill(client: MilvusClient, rows: Rows) -> None:
        schema = client.create_schema(auto_id=False)
        schema.add_field("position", DataType.INT64, is_primary=True)
        schema.add_field("vector", DataType.FLOAT_VECTOR, dim=rows.dimension)
        for name in ("id", "title", "text"):
            schema.add_field(name, DataType.VARCHAR, max_length=TEXT_BYTES)
        index = client.prepare_index_params()
        index.add_index("vector", index_type="FLAT", metric_type="IP")
        client.create_collection(COLLECTION, schema=schema, index_params=index)
        for start in range(0, rows.size, INSERTED_ROWS):
            places = np.arange(start, min(start + INSERTED_ROWS, rows.size))
            found = zip(places.tolist(), rows.vectors(places), rows.passages(places), strict=True)
            data = [
                {"position": place, "vector": vector, "id": passage.id, "title": passage.title, "text": passage.text}
                for place, vector, passage in found
            ]
            client.insert(COLLECTION, data)
        client.flush(COLLECTION)
        client.load_collection(COLLECTION)
        client.close()

    def stop(self) -> None:
        """End the process and remove its data."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._directory.cleanup()


@dataclass
class MilvusLite:
    """Searches by vector; each hit comes with `fields` of its passage."""

    server: MilvusServer
    k: int
    fields: tuple[str, ...] = ("id", "title", "text")
    name: str = "milvus-lite"
    remote: bool = True

    def __post_init__(self) -> None:
        self._client = MilvusClient(self.server.uri, grpc_options=CHANNEL)
        self._runner = asyncio.Runner()
        self._aio: Any = self._runner.run(self._connect())

    async def _connect(self) -> Any:
        return AsyncMilvusClient(self.server.uri, grpc_options=CHANNEL)

    def one(self, query: Asked) -> Any:
        """One request with one vector."""
        return self._client.search(COLLECTION, **self._arguments([query]))

    def many(self, batches: Sequence[Sequence[Asked]], in_flight: int) -> list[Any]:
        """Requests of one batch each, from asyncio."""

        async def call(queries: Sequence[Asked]) -> Any:
            return await self._aio.search(COLLECTION, **self._arguments(queries))

        return self._runner.run(in_flight_map(call, batches, in_flight))

    def _arguments(self, queries: Sequence[Asked]) -> dict[str, Any]:
        return {
            "data": list(queries),
            "limit": self.k,
            "output_fields": list(self.fields),
            "search_params": METRIC,
        }

    def ids(self, answer: Any) -> Found:
        """Ids of what was found."""
        return [[hit["entity"]["id"] for hit in hits] for hits in answer]

    def close(self) -> None:
        """Close the clients; the server stays."""
        self._client.close()
        self._runner.run(self._aio.close())
        self._runner.close()
