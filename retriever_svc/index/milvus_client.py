"""A connection to a Milvus server: collections of vectors by position, and the client's errors turned into ours."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from ragserve.errors import FailedPreconditionError, UnavailableError
from ragserve.serving.logs import fields
from retriever_svc.index.milvus_kinds import MilvusKind
from retriever_svc.index.overfetch import nothing
from retriever_svc.index.protocol import VectorSource
from retriever_svc.index.vectors import finite_blocks
from retriever_svc.types import Float32, Int64

log = logging.getLogger(__name__)

POSITION, VECTOR = "position", "vector"
ROWS, STARTED = "ragserve.rows", "ragserve.started"  # properties of a collection: vectors it must hold, Unix seconds
INSERT_ROWS = 4096  # of 1,024 float32 values: 16 MB, under Milvus's limit of 64 MB for a message
UNAVAILABLE, NO_COLLECTION = 2, 100  # codes of a MilvusException
# pymilvus pings every 10 s, calls or not, and gRPC's servers hang up on whoever pings that often.
GRPC_OPTIONS = {"grpc.keepalive_time_ms": 60_000, "grpc.keepalive_permit_without_calls": 0}


class MilvusConnection:
    """pymilvus's client, loaded when first needed, its errors turned into ours."""

    def __init__(self, uri: str, token: str = "", timeout: float = 60.0) -> None:
        try:
            self._pymilvus = importlib.import_module("pymilvus")
        except ImportError as error:
            raise FailedPreconditionError(
                "milvus_uri is set, but pymilvus is not installed: install the extra 'milvus'", field="milvus_uri"
            ) from error
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs what it raises, and so do we
        address = urlsplit(uri)
        self._address = f"{address.hostname}:{address.port}" if address.hostname else uri  # without a password
        self._timeout = timeout
        with self._errors():
            self._client = self._pymilvus.MilvusClient(uri=uri, token=token, timeout=timeout, grpc_options=GRPC_OPTIONS)

    def call(self, method: str, *arguments: Any, **named: Any) -> Any:
        """Call a method of MilvusClient."""
        with self._errors():
            return getattr(self._client, method)(*arguments, timeout=self._timeout, **named)

    def create(self, name: str, source: VectorSource, kind: MilvusKind) -> None:
        """A collection with all vectors, loaded, its index built; nothing stays of one that fails."""
        types = self._pymilvus.DataType
        with self._errors():
            schema = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field(POSITION, types.INT64, is_primary=True)
            schema.add_field(VECTOR, types.FLOAT_VECTOR, dim=source.dimension)
            index = self._client.prepare_index_params()
            # pymilvus unpacks one layer of `params`; both servers read the other, and milvus-lite only that.
            build = {"params": dict(kind.build)}
            index.add_index(VECTOR, index_type=kind.index_type, metric_type="IP", params=build)
        properties = {ROWS: str(source.size), STARTED: str(int(time.time()))}
        self.call("create_collection", name, schema=schema, consistency_level="Strong", properties=properties)
        try:
            first = 0
            for block in finite_blocks(source):
                for start in range(0, len(block), INSERT_ROWS):
                    part = block[start : start + INSERT_ROWS]
                    self.call(
                        "insert", name, [{POSITION: first + row, VECTOR: vector} for row, vector in enumerate(part)]
                    )
                    first += len(part)
            self.call("flush", name)
            self.call("create_index", name, index)
            self.call("load_collection", name)
            self._require_rows(name, source.size)
        except BaseException:
            self.call("drop_collection", name)
            raise

    def is_complete(self, name: str, size: int) -> bool:
        """Whether there is a collection of this name that holds what it must."""
        if not self.call("has_collection", name) or self.properties(name).get(ROWS) != str(size):
            return False
        self.call("load_collection", name)
        found = self.rows(name)
        if found != size:
            log.warning(
                "DATA_LOSS: collection lacks rows, building it again", extra=fields(collection=name, rows=found)
            )
        return found == size

    def _require_rows(self, name: str, size: int) -> None:
        found = self.rows(name)
        if found != size:
            raise FailedPreconditionError(
                f"milvus_uri: Milvus at {self._address} took {found} of {size} vectors: try again", field="milvus_uri"
            )

    def properties(self, name: str) -> dict[str, str]:
        """What was written beside a collection when it was made."""
        found: dict[str, str] = self.call("describe_collection", name).get("properties", {})
        return found

    def rows(self, name: str) -> int:
        """How many vectors a loaded collection holds."""
        return int(self.call("query", name, output_fields=["count(*)"])[0]["count(*)"])

    def search(
        self, name: str, queries: Float32, n_candidates: int, parameters: dict[str, int], expression: str
    ) -> tuple[Float32, Int64]:
        """Scores and positions [n_queries, n_candidates]."""
        scores, positions = nothing(len(queries), n_candidates)
        found = self.call(
            "search", name, queries, limit=n_candidates, filter=expression, anns_field=VECTOR, output_fields=[POSITION],
            search_params={"metric_type": "IP", "params": parameters},
        )  # fmt: skip
        for row, hits in enumerate(found):
            scores[row, : len(hits)] = [hit["distance"] for hit in hits]
            positions[row, : len(hits)] = [hit[POSITION] for hit in hits]
        return scores, positions

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raises UnavailableError for a server that is gone, FailedPreconditionError for one that refuses."""
        try:
            yield
        except Exception as error:
            if type(error).__module__.partition(".")[0] not in ("pymilvus", "grpc"):
                raise
            code, reason = getattr(error, "code", None), getattr(error, "message", "") or str(error)
            if code == NO_COLLECTION:
                reason = f"{reason}; the next start builds it again"
            if code in (UNAVAILABLE, NO_COLLECTION) or not isinstance(error, self._pymilvus.MilvusException):
                message = f"milvus_uri: Milvus at {self._address} does not serve the index: {reason}"
                raise UnavailableError(message, field="milvus_uri") from error
            message = f"milvus_uri: Milvus at {self._address} refuses: {reason}"
            raise FailedPreconditionError(message, field="milvus_uri") from error
