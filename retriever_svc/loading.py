"""Loads what a model directory and a knowledge base hold for retrieval, and checks that they fit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ragserve.checkpoint import Manifest, load_manifest, verify_files
from ragserve.errors import FailedPreconditionError
from retriever_svc.device import Device
from retriever_svc.encoder import TextEncoder
from retriever_svc.index import FaissIndex, Index, IndexCache, IndexSpec
from retriever_svc.knowledge import KnowledgeBase, passage_encoder_directory, passage_encoder_hash, reading
from retriever_svc.rows import Rows
from retriever_svc.searcher import Searcher, Snapshot

DEFAULT_MEMORY_BYTES = 2 * 2**30
CACHE_NAME = "indexes"


@dataclass(frozen=True)
class RetrievalOptions:
    """How to load a model and a knowledge base; each is documented in `RetrieverSettings`."""

    index: IndexSpec = field(default_factory=IndexSpec)
    device: Device = "auto"
    threads: int = 0
    max_batch_tokens: int = 0
    score_scale: float | None = None
    max_memory_bytes: int = DEFAULT_MEMORY_BYTES
    index_cache: bool = True
    index_cache_dir: Path | None = None
    knowledge_version: int = 0


def load_searcher(model: Path, options: RetrievalOptions) -> Searcher:
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
        max_batch_tokens=options.max_batch_tokens,
    )
    return Searcher(encoder, manifest.score_scale if options.score_scale is None else options.score_scale)


def load_passage_encoder(model: Path, options: RetrievalOptions) -> tuple[TextEncoder, str]:
    """The encoder of a model's passages and the hash that its knowledge bases carry. Raises as `load_searcher`."""
    manifest = load_manifest(model)
    directory = passage_encoder_directory(model)
    verify_files(model, manifest, directory.name)
    encoder = TextEncoder.load(
        directory, device=options.device, threads=options.threads, max_batch_tokens=options.max_batch_tokens
    )
    return encoder, passage_encoder_hash(model, manifest)


def load_snapshot(model: Path, knowledge_base: Path, options: RetrievalOptions, dimension: int) -> Snapshot:
    """A version of the knowledge base with its index, read from the cache or built.

    Raises:
        NotFoundError: no knowledge base there, or no such version.
        FailedPreconditionError: it is empty, or its vectors are another encoder's.
        DataLossError: its files are damaged.
        InvalidInputError: the index settings do not fit it.
    """
    manifest: Manifest = load_manifest(model)
    knowledge = KnowledgeBase.open(knowledge_base, options.knowledge_version)
    knowledge.require_servable(passage_encoder_hash(model, manifest))
    if knowledge.dimension != dimension:
        raise FailedPreconditionError(
            f"{knowledge_base} has vectors of width {knowledge.dimension}, the query encoder makes {dimension}",
            field=str(knowledge_base),
        )
    with reading(knowledge_base):
        rows = knowledge.rows(options.max_memory_bytes)
        return Snapshot(knowledge.version, rows, _load_index(knowledge, rows, options))


def _load_index(knowledge: KnowledgeBase, rows: Rows, options: RetrievalOptions) -> Index:
    """The index over the rows: from the cache, or built."""
    if options.index.factory == "Flat" or not options.index_cache:
        return FaissIndex.build(rows, options.index)  # a Flat index is a copy: built as fast as read
    cache = IndexCache(options.index_cache_dir or knowledge.path / CACHE_NAME)
    return cache.load_or_build(knowledge.content, options.index, lambda: FaissIndex.build(rows, options.index))
