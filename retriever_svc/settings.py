"""The retriever's settings: read once, documented here and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from ragserve.passage_rules import MAX_PASSAGE_BYTES, MAX_TEXT_BYTES
from ragserve.serving.settings import ServerSettings
from retriever_svc.device import Device
from retriever_svc.editing import EditOptions
from retriever_svc.encoder_session import Precision as EncoderPrecision
from retriever_svc.engine import DEFAULT_REFRESH_SECONDS, EngineOptions
from retriever_svc.index import IndexSpec
from retriever_svc.index.spec import Gpus
from retriever_svc.index.spec import Precision as IndexPrecision
from retriever_svc.kinds import LookupOptions, SearchKind
from retriever_svc.lexical import BM25_SCALE, RECIPROCAL_RANK_SCALE, WEIGHT
from retriever_svc.live.follower import FollowOptions
from retriever_svc.loading import (
    DEFAULT_MEMORY_BYTES,
    MilvusServer,
    RetrievalOptions,
)
from retriever_svc.requests import RequestLimits


class RetrieverSettings(BaseSettings):
    """Query encoder, FAISS index and knowledge base behind a gRPC port."""

    model_config = SettingsConfigDict(
        env_prefix="RAGSERVE_RETRIEVER_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    server: ServerSettings = ServerSettings(port=50061, metrics_port=9461)
    model: Path = Field(description="model directory, written by 'ragserve import-checkpoint'")
    knowledge: Path = Field(description="knowledge base, written by 'ragserve kb build'")
    knowledge_version: int = Field(0, ge=0, description="the one version to serve, not followed; 0: the newest")
    check_files: bool = Field(True, description="compare its files with their checksums before they are first read")
    device: Device = Field("auto", description="where the encoder runs; auto: CUDA where it can be used")
    threads: int = Field(
        0, ge=0, description="threads of the encoder and of index building; 0: OMP_NUM_THREADS, else every core allowed"
    )
    encoder_twice: bool = Field(
        True,
        description="load a second encoder session with half the threads, so that two batches run at once; doubles the "
        "encoder's memory",
    )
    batch_tokens: int = Field(0, ge=0, description="most tokens in one pass of the encoder; 0: what suits the device")
    encoder_precision: EncoderPrecision = Field(
        "float32", description="of the query encoder's graph; int8 and float16 ones are made by import-checkpoint"
    )
    score_scale: float | None = Field(
        None, gt=0, allow_inf_nan=False, description="factor on scores before the prior's softmax; unset: the model's"
    )
    lexical: bool = Field(False, description="hold an index of words too, for the search kinds bm25, weighted and rrf")
    search_kind: Literal["dense", "bm25", "weighted", "rrf"] = Field(
        "dense", description="what is searched where a request does not say"
    )
    lexical_weight: float = Field(
        WEIGHT, ge=0, le=1, description="part of BM25 in a weighted search, where it is not said"
    )
    bm25_score_scale: float = Field(BM25_SCALE, gt=0, description="as score_scale, for search kind bm25")
    rrf_score_scale: float = Field(RECIPROCAL_RANK_SCALE, gt=0, description="as score_scale, for search kind rrf")
    index_factory: str = Field("Flat", min_length=1, description="FAISS index_factory string, as HNSW32 or IVF256,SQ8")
    index_search_parameters: str = Field("", description="FAISS search parameters, as nprobe=16 or efSearch=64")
    index_device: Device = Field("auto", description="where the index is searched; auto: as device, if FAISS can")
    index_training_vectors: int = Field(200_000, ge=1, description="most vectors that an index is trained on")
    index_threads: int = Field(1, ge=1, description="threads of a search; more help large batches on idle cores")
    index_precision: IndexPrecision = Field("float32", description="how the index holds vectors, if the string is open")
    index_gpus: Gpus = Field("one", description="of several GPUs: the first alone, a share on each, or all on each")
    index_gpu_fallback: bool = Field(False, description="search on the CPU where index_device cuda cannot be had")
    index_max_nprobe: int = Field(1024, ge=1, description="most cells of an IVF index that a request may ask for")
    index_max_ef_search: int = Field(4096, ge=1, description="most candidates that a request may ask of an HNSW index")
    index_refine_factor: float = Field(
        1.0,
        ge=1,
        le=100,
        description="times k candidates of an approximate index are ranked by their true vectors",
    )
    index_codes: bool = Field(
        True, description="an exact index on a CPU holds 8-bit codes too: a quarter more memory, lone queries sooner"
    )
    milvus_uri: str = Field("", description="a Milvus server that holds the index instead, as http://host:19530")
    milvus_token: SecretStr = Field(SecretStr(""), description="its token, as user:password")
    index_cache: bool = Field(True, description="keep built indexes (but Flat ones) as files for the next start")
    index_cache_dir: Path | None = Field(None, description="where they are kept; unset: indexes/ in the knowledge base")
    passages_in_memory_bytes: int = Field(
        DEFAULT_MEMORY_BYTES,
        ge=0,
        description="a knowledge base up to this size is held in memory, else read from disk",
    )
    keep_versions: int = Field(2, ge=1, description="newest versions that stay loaded, so that a request may pin them")
    refresh_seconds: float = Field(
        DEFAULT_REFRESH_SECONDS, gt=0, description="a commit made elsewhere is found here within this time"
    )
    rebuild_min_rows: int = Field(
        1_000, ge=1, description="changed passages from which on the index is built anew in the background, or"
    )
    rebuild_fraction: float = Field(0.1, gt=0, description="this part of the indexed passages, where that is more")
    writable: bool = Field(True, description="take writes: UpsertPassages, DeletePassages, Rollback, Compact")
    query_cache_entries: int = Field(
        0, ge=0, description="answers kept, by the query's tokens, version, k and options; 0: none"
    )
    max_waiting_writes: int = Field(64, ge=1, description="most writes queued; more are refused")
    max_upsert_passages: int = Field(100_000, ge=1, description="most passages, or ids, in one write")
    max_passage_bytes: int = Field(
        MAX_PASSAGE_BYTES, ge=1, description="largest passage: id, title, text and metadata in bytes of UTF-8"
    )
    max_text_bytes: int = Field(
        MAX_TEXT_BYTES, ge=1, description="longest text of an upsert before it is split, in bytes of UTF-8"
    )
    max_k: int = Field(100, ge=1, description="most passages that a query may ask for")
    max_batch_queries: int = Field(64, ge=1, description="most queries in one request, and in one joined batch")
    max_query_characters: int = Field(10_000, ge=1, description="longest question, in characters")
    max_waiting: int = Field(256, ge=1, description="most requests queued; more are refused with RESOURCE_EXHAUSTED")

    @field_validator("search_kind", mode="before")
    @classmethod
    def _any_case(cls, kind: object) -> object:
        return kind.lower() if isinstance(kind, str) else kind

    @field_validator("search_kind")
    @classmethod
    def _words_are_there(cls, kind: str, info: ValidationInfo) -> str:
        if kind != SearchKind.DENSE and not info.data.get("lexical"):
            raise ValueError("it needs lexical=true")
        return kind

    def engine_options(self) -> EngineOptions:
        """How the engine loads, follows and writes."""
        return EngineOptions(
            retrieval=self.retrieval_options(),
            limits=RequestLimits(
                max_k=self.max_k,
                max_batch_queries=self.max_batch_queries,
                max_query_characters=self.max_query_characters,
                max_upsert_passages=self.max_upsert_passages,
                max_passage_bytes=self.max_passage_bytes,
                max_text_bytes=self.max_text_bytes,
                max_message_bytes=self.server.max_message_bytes,
            ),
            follow=FollowOptions(
                1 if self.knowledge_version else self.keep_versions, self.rebuild_min_rows, self.rebuild_fraction
            ),
            edit=EditOptions(
                self.writable and not self.knowledge_version, self.max_waiting_writes, self.max_passage_bytes
            ),
            lookup=LookupOptions(kind=SearchKind(self.search_kind), lexical_weight=self.lexical_weight),
            max_waiting=self.max_waiting,
            query_cache_entries=self.query_cache_entries,
            refresh_seconds=self.refresh_seconds,
        )

    def retrieval_options(self) -> RetrievalOptions:
        """What loading needs to know."""
        index = IndexSpec(
            factory=self.index_factory,
            search_parameters=self.index_search_parameters,
            device="cpu" if (self.device, self.index_device) == ("cpu", "auto") else self.index_device,
            threads=self.index_threads,
            build_threads=self.threads,
            training_vectors=self.index_training_vectors,
            precision=self.index_precision,
            gpus=self.index_gpus,
            gpu_fallback=self.index_gpu_fallback,
            max_nprobe=self.index_max_nprobe,
            max_ef_search=self.index_max_ef_search,
            refine_factor=self.index_refine_factor,
            codes=self.index_codes,
        )
        return RetrievalOptions(
            index=index,
            device=self.device,
            threads=self.threads,
            encoder_twice=self.encoder_twice,
            max_batch_tokens=self.batch_tokens,
            encoder_precision=self.encoder_precision,
            score_scale=self.score_scale,
            milvus=MilvusServer(self.milvus_uri, self.milvus_token.get_secret_value()) if self.milvus_uri else None,
            lexical=self.lexical,
            bm25_score_scale=self.bm25_score_scale,
            rrf_score_scale=self.rrf_score_scale,
            max_memory_bytes=self.passages_in_memory_bytes,
            check_files=self.check_files,
            index_cache=self.index_cache,
            index_cache_dir=self.index_cache_dir,
            knowledge_version=self.knowledge_version,
        )
