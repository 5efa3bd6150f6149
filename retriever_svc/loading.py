"""Loads what a model directory and a knowledge base hold for retrieval, and checks that they fit."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

from ragserve.checkpoint import load_manifest, verify_files
from ragserve.errors import DataLossError, FailedPreconditionError, NotFoundError
from ragserve.serving.logs import fields
from retriever_svc.checksums import file_checks
from retriever_svc.device import Device
from retriever_svc.encoder import TextEncoder
from retriever_svc.encoder_session import Precision as EncoderPrecision
from retriever_svc.index import FaissIndex, Index, IndexCache, IndexSpec, TrainingError
from retriever_svc.index.milvus_index import MilvusIndex
from retriever_svc.kinds import Scales
from retriever_svc.knowledge import (
    KnowledgeBase,
    newest_version,
    passage_encoder_directory,
    passage_encoder_hash,
    reading,
)
from retriever_svc.lexical import BM25_SCALE, RECIPROCAL_RANK_SCALE
from retriever_svc.live.snapshot import Base, Snapshot, index_words
from retriever_svc.query_cache import QueryCache
from retriever_svc.rows import Rows
from retriever_svc.searcher import Searcher
from retriever_svc.types import QueryHits

DEFAULT_MEMORY_BYTES = 2 * 2**30
CACHE_NAME = "indexes"
# How many versions back a start looks for an index on disk that it can go on from.
CACHED_VERSIONS_BACK = 64
# Up to so many passages are compared with a query one by one where their index cannot be trained on them.
MOST_EXACT = 10_000

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class MilvusServer:
    """A Milvus server that holds the base index instead of this process."""

    uri: str
    token: str = ""


@dataclass(frozen=True)
class RetrievalOptions:
    """How to load a model and a knowledge base; each is documented in `RetrieverSettings`."""

    index: IndexSpec = field(default_factory=IndexSpec)
    device: Device = "auto"
    threads: int = 0
    encoder_twice: bool = False
    max_batch_tokens: int = 0
    encoder_precision: EncoderPrecision = "float32"
    score_scale: float | None = None
    milvus: MilvusServer | None = None
    lexical: bool = False
    bm25_score_scale: float = BM25_SCALE
    rrf_score_scale: float = RECIPROCAL_RANK_SCALE
    max_memory_bytes: int = DEFAULT_MEMORY_BYTES
    check_files: bool = True
    index_cache: bool = True
    index_cache_dir: Path | None = None
    knowledge_version: int = 0


def load_searcher(model: Path, options: RetrievalOptions, cache: QueryCache[QueryHits] | None = None) -> Searcher:
    """The query encoder of a model directory, its files checked, with its score scale.

    Raises:
        NotFoundError: a file is missing.
        DataLossError: a file was altered or truncated.
        FailedPreconditionError: a file cannot be used, or CUDA is asked for and absent.
    """
    manifest = load_manifest(model)
    verify_files(model, manifest, "query_encoder")
    encoder = TextEncoder.load(
        model / "query_encoder",
        device=options.device,
        threads=options.threads,
        twice=options.encoder_twice,
        max_batch_tokens=options.max_batch_tokens,
        precision=options.encoder_precision,
    )
    dense = manifest.score_scale if options.score_scale is None else options.score_scale
    return Searcher(encoder, Scales(dense, options.bm25_score_scale, options.rrf_score_scale), cache)


def load_passage_encoder(model: Path, options: RetrievalOptions) -> tuple[TextEncoder, str]:
    """The encoder of a model's passages and the hash that its knowledge bases carry. Raises as `load_searcher`."""
    manifest = load_manifest(model)
    directory = passage_encoder_directory(model)
    verify_files(model, manifest, directory.name)
    encoder = TextEncoder.load(
        directory, device=options.device, threads=options.threads, max_batch_tokens=options.max_batch_tokens
    )
    return encoder, passage_encoder_hash(model, manifest)


class KnowledgeSource:
    """The versions of a knowledge base as a model can search them, each checked when it is opened."""

    def __init__(self, path: Path, encoder: str, dimension: int, options: RetrievalOptions) -> None:
        """`encoder`: hash of the passage encoder (`passage_encoder_hash`); `dimension`: of the query's vectors."""
        self.path = path
        self.encoder = encoder
        self._dimension = dimension
        self._options = options

    @classmethod
    def of_model(cls, model: Path, path: Path, dimension: int, options: RetrievalOptions) -> KnowledgeSource:
        """What fits a model directory. Raises NotFoundError where its passage encoder is missing."""
        return cls(path, passage_encoder_hash(model, load_manifest(model)), dimension, options)

    def newest(self) -> int:
        """The newest version committed; the one that the options name, where they name one."""
        return self._options.knowledge_version or newest_version(self.path)

    def open(self, version: int) -> KnowledgeBase:
        """A version, open for reading.

        Raises:
            NotFoundError: no knowledge base there, or no such version.
            FailedPreconditionError: its vectors are another encoder's, or of another width.
            DataLossError: a file of it was altered.
        """
        knowledge = KnowledgeBase.open(self.path, version)
        knowledge.require_servable(self.encoder)
        if self._options.check_files:
            file_checks(self.path).verify(knowledge.dataset)
        if knowledge.dimension != self._dimension:
            raise FailedPreconditionError(
                f"{self.path} has vectors of width {knowledge.dimension}, the query encoder makes {self._dimension}",
                field=str(self.path),
            )
        return knowledge

    def base(self, knowledge: KnowledgeBase, loaded: Snapshot | None = None, *, or_exact: bool = False) -> Base:
        """A version with its index, read from the cache or built; its rows come from memory where it is `loaded`.

        With `or_exact`, a version of few passages gets an exact index where its own cannot be trained on them: nothing
        else could answer from it.

        Raises:
            DataLossError: its files are damaged.
            InvalidInputError: the index settings do not fit it.
        """
        with reading(self.path):
            rows = self._rows(knowledge, loaded)
            words = index_words(rows) if self._options.lexical else None
            return Base(knowledge.version, rows, self._index(knowledge, rows, or_exact=or_exact), words)

    def first_base(self, knowledge: KnowledgeBase) -> Base:
        """The base to start from: that of the newest earlier version whose index is on disk, else of this one.

        Earlier versions that are damaged are passed over. Raises as `base`.
        """
        cache = self._cache()
        oldest = max(knowledge.version - CACHED_VERSIONS_BACK, 0)
        for version in range(knowledge.version, oldest, -1) if cache else ():
            try:
                earlier = knowledge if version == knowledge.version else self.open(version)
                with reading(self.path):
                    content = earlier.content
                if cache and cache.path_of(content, self._options.index).exists():
                    log.info("index of an earlier version found", extra=fields(version=version))
                    return self.base(earlier)
            except DataLossError as error:
                if version == knowledge.version:
                    raise
                log.warning("an earlier version is damaged", extra=fields(version=version, reason=error.message))
            except (NotFoundError, FailedPreconditionError):
                break
        return self.base(knowledge, or_exact=True)

    def _rows(self, knowledge: KnowledgeBase, loaded: Snapshot | None) -> Rows:
        """In memory if they are no larger than the options allow."""
        most = self._options.max_memory_bytes
        at_hand = loaded.from_memory(knowledge.dataset) if loaded and knowledge.size_bytes <= most else None
        return at_hand or knowledge.rows(most)

    def _index(self, knowledge: KnowledgeBase, rows: Rows, *, or_exact: bool) -> Index:
        spec, milvus, cache = self._options.index, self._options.milvus, self._cache()
        if not rows.size:  # nothing to train on; what is added is compared one by one until the next rebuild
            return FaissIndex.build_exact(rows, spec) if milvus is None else FaissIndex.build(rows, spec.flat)
        if milvus is not None:
            return MilvusIndex.build(rows, spec, uri=milvus.uri, content=knowledge.content, token=milvus.token)

        def build() -> FaissIndex:
            log.info("building the index", extra=fields(version=knowledge.version, passages=rows.size))
            return FaissIndex.build(rows, spec)

        try:
            return build() if cache is None else cache.load_or_build(knowledge.content, spec, build)
        except TrainingError as error:
            if not or_exact or rows.size > MOST_EXACT:
                raise
            log.warning(
                "index cannot be trained, passages are searched one by one",
                extra=fields(reason=error.message),
            )
            return FaissIndex.build_exact(rows, spec)

    def _cache(self) -> IndexCache | None:
        """Where indexes are kept; nowhere for a Flat one, which is a copy of the vectors: built as fast as read."""
        options = self._options
        if options.index.factory == "Flat" or not options.index_cache or options.milvus is not None:
            return None
        return IndexCache(self._options.index_cache_dir or self.path / CACHE_NAME)


def load_snapshot(model: Path, knowledge_base: Path, options: RetrievalOptions, dimension: int) -> Snapshot:
    """A version of the knowledge base with its index. Raises as `KnowledgeSource.open` and `base`."""
    source = KnowledgeSource.of_model(model, knowledge_base, dimension, options)
    return Snapshot.of_base(source.base(source.open(source.newest()), or_exact=True))
