"""A vector index in a Milvus server, for knowledge bases beyond one machine.

A collection holds the vectors of one version and never changes, so that versions keep their meaning: what is upserted
or deleted since comes as a mask with the search. It is filled under a name of its own and renamed when it is complete,
so that a half-built one is never taken for it; replicas with the same content use the same collection.
"""

from __future__ import annotations

import hashlib
import logging
import time
import uuid

import numpy as np
from numpy.typing import NDArray

from ragserve.serving.logs import fields
from retriever_svc.index.milvus_client import POSITION, STARTED, MilvusConnection
from retriever_svc.index.milvus_kinds import MilvusKind, milvus_kind
from retriever_svc.index.overfetch import nothing, search_allowed
from retriever_svc.index.parameters import check_options
from retriever_svc.index.protocol import DEFAULT_OPTIONS, SearchOptions, VectorSource
from retriever_svc.index.spec import IndexSpec
from retriever_svc.types import Float32, Int64

log = logging.getLogger(__name__)

PREFIX = "ragserve_"
BUILDING = "_building_"
MOST_CANDIDATES = 16_384  # the most that Milvus returns for a query
SHORT_FILTER = 4096  # positions that are named in a filter without a second thought
ABANDONED_SECONDS = 24 * 3600  # a build that began so long ago is not going on


class MilvusIndex:
    """One version's vectors in a collection of a Milvus server, searched by inner product."""

    def __init__(self, client: MilvusConnection, collection: str, source: VectorSource, spec: IndexSpec) -> None:
        self.size: int = source.size
        self.dimension: int = source.dimension
        self.device = "milvus"
        self.collection = collection
        self._client = client
        self._spec = spec
        self._kind = milvus_kind(spec)

    @classmethod
    def build(
        cls, source: VectorSource, spec: IndexSpec, *, uri: str, content: str, token: str = "", timeout: float = 60.0
    ) -> MilvusIndex:
        """Use the complete collection for this content (see `KnowledgeBase.content`), or fill a new one.

        Args:
            source: the vectors; their positions are the collection's primary key.
            spec: the kind of index, within what Milvus has (see `milvus_kinds`).
            uri: of the server, as http://host:19530; a path ending in .db starts milvus-lite in this process.
            content: a text that is the same only for the same rows.
            token: the server's, as user:password; empty for none.
            timeout: seconds that a call may take.

        Raises:
            InvalidInputError: Milvus has no such kind of index.
            FailedPreconditionError: pymilvus is not installed, the server refuses, or a vector is not finite.
            UnavailableError: the server does not answer.
        """
        kind = milvus_kind(spec)
        client = MilvusConnection(uri, token, timeout)
        name = collection_name(content, spec)
        try:
            if client.is_complete(name, source.size):
                log.info("index found in Milvus", extra=fields(collection=name))
            else:
                _fill(client, name, source, kind)
            client.call("load_collection", name)
        except BaseException:
            client.close()
            raise
        return cls(client, name, source, spec)

    @property
    def exact(self) -> bool:
        """Whether a query is compared with every vector in float32."""
        return self._kind.index_type == "FLAT"

    @property
    def refine_factor(self) -> float:
        """How many times k candidates are worth ranking by their true vectors."""
        return 1.0 if self.exact else self._spec.refine_factor

    def check_options(self, options: SearchOptions) -> None:
        """Check the parameters of a search. Raises as `Index.check_options`."""
        check_options(options, self._spec, has_cells=self._kind.has_cells, has_graph=self._kind.has_graph)

    def search(
        self, queries: Float32, n_candidates: int, options: SearchOptions = DEFAULT_OPTIONS
    ) -> tuple[Float32, Int64]:
        """Scores and positions, both [n_queries, n_candidates], best first; position -1 where nothing was found.

        A mask becomes a filter that names what is allowed, or what is not, where these are few; otherwise more
        candidates are asked for and those kept that are allowed, and only what that does not settle gets a long filter.

        Raises:
            UnavailableError: the server does not answer, or has lost the collection.
        """

        def search(some: Float32, n_wanted: int, expression: str = "") -> tuple[Float32, Int64]:
            parameters = self._kind.search_parameters(n_wanted, options, self._spec)
            return self._client.search(self.collection, some, n_wanted, parameters, expression)

        allowed = options.allowed
        if allowed is None or not allowed.any():
            found = search(queries, n_candidates) if allowed is None else nothing(len(queries), n_candidates)
            return found
        listed, expression = _filter(allowed)
        if listed <= SHORT_FILTER:
            return search(queries, n_candidates, expression)
        scores, positions, undone = search_allowed(search, queries, n_candidates, allowed, MOST_CANDIDATES)
        if len(undone):
            scores[undone], positions[undone] = search(queries[undone], n_candidates, expression)
        return scores, positions

    def close(self) -> None:
        """Close the connection; the collection stays for other replicas and the next start."""
        self._client.close()


def collection_name(content: str, spec: IndexSpec) -> str:
    """The collection for a content and a kind of index."""
    kind = milvus_kind(spec)
    key = f"{content}\n{kind.index_type}\n{sorted(kind.build.items())}"
    return PREFIX + hashlib.sha256(key.encode()).hexdigest()[:40]


def drop_unused(uri: str, keep: set[str], *, token: str = "", min_age_seconds: float = 0.0) -> list[str]:
    """Drop the complete collections that are not in `keep` and at least so old, and what interrupted builds left.

    Only the caller knows which versions the replicas on this server serve: name all of them (`MilvusIndex.collection`).

    Returns:
        The names of what was dropped.

    Raises:
        UnavailableError: the server does not answer.
    """
    client = MilvusConnection(uri, token)
    try:
        dropped = []
        for name in client.call("list_collections"):
            if not name.startswith(PREFIX) or name in keep:
                continue
            age = time.time() - float(client.properties(name).get(STARTED, 0))
            if age >= (ABANDONED_SECONDS if BUILDING in name else min_age_seconds):
                client.call("drop_collection", name)
                dropped.append(name)
        return dropped
    finally:
        client.close()


def _fill(client: MilvusConnection, name: str, source: VectorSource, kind: MilvusKind) -> None:
    """Fill a collection under a name of its own, and give it its name once it is whole."""
    temporary = f"{name}{BUILDING}{uuid.uuid4().hex[:12]}"
    client.create(temporary, source, kind)
    try:
        if not client.is_complete(name, source.size):  # else another replica was faster
            client.call("drop_collection", name)  # an incomplete one; nothing where there is none
            client.call("rename_collection", temporary, name)
    finally:
        client.call("drop_collection", temporary)  # nothing once it is renamed
    log.info("index built in Milvus", extra=fields(collection=name, rows=source.size, index=kind.index_type))


def _filter(allowed: NDArray[np.bool_]) -> tuple[int, str]:
    """The shorter of two filters for a mask, naming what is allowed or what is not, and how many it names."""
    inside, outside = np.flatnonzero(allowed), np.flatnonzero(~allowed)
    if not len(outside):
        return 0, ""
    if len(inside) <= len(outside):
        return len(inside), f"{POSITION} in {inside.tolist()}"
    return len(outside), f"{POSITION} not in {outside.tolist()}"
