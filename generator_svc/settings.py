"""The generator's settings: read once, documented here and nowhere else."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from generator_svc.models.precision import Precision
from generator_svc.options import Device, EngineOptions
from ragserve.serving.settings import ServerSettings

DEFAULTS = EngineOptions()


class GeneratorSettings(BaseSettings):
    """BART or T5 behind a gRPC port: per-document log-probabilities of candidate tokens."""

    model_config = SettingsConfigDict(
        env_prefix="RAGSERVE_GENERATOR_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    server: ServerSettings = Field(ServerSettings(port=50062, metrics_port=9462), description="where it listens")
    model: Path = Field(description="model directory, written by 'ragserve import-checkpoint'")
    device: Device = Field("auto", description="where the model runs; auto: CUDA where it can be used")
    precision: Precision = Field("float32", description="precision of weights and arithmetic")
    threads: int = Field(
        0, ge=0, description="threads of one pass over the model; 0: OMP_NUM_THREADS, else every core allowed"
    )
    max_sessions: int = Field(DEFAULTS.max_sessions, ge=1, description="most decode sessions at a time")
    max_rows: int = Field(
        DEFAULTS.max_rows, ge=1, description="most rows (hypotheses times their documents) of all sessions"
    )
    cache_bytes: int = Field(DEFAULTS.cache_bytes, ge=1, description="most bytes of keys and values of all sessions")
    encoder_cache_bytes: int = Field(
        DEFAULTS.encoder_cache_bytes,
        ge=0,
        description="most bytes of documents kept encoded when no session has them, beside cache_bytes, for sessions"
        " with the same question and passage; 0: none, and sessions share none",
    )
    step_rows: int = Field(
        DEFAULTS.step_rows,
        ge=0,
        description="most rows of one decode step, for which sessions take turns; 0: 16 on a CPU, all on CUDA",
    )
    prefill_tokens: int = Field(
        DEFAULTS.prefill_tokens,
        ge=0,
        description="most tokens read between two decode steps: of contexts, of prefixes, of targets to score; 0: 256"
        " on a CPU, 8192 on CUDA",
    )
    idle_seconds: float = Field(
        DEFAULTS.idle_seconds, gt=0, allow_inf_nan=False, description="a session that asks nothing for so long is freed"
    )
    draft_tokens: int = Field(
        DEFAULTS.draft_tokens,
        ge=0,
        description="most tokens guessed from the documents ahead of a search with one hypothesis; 0: none",
    )
    max_context_tokens: int = Field(DEFAULTS.max_context_tokens, ge=8, description="longest context of a document")
    max_target_tokens: int = Field(
        DEFAULTS.max_target_tokens, ge=2, description="longest output, decoder start token included"
    )
    max_documents: int = Field(DEFAULTS.max_documents, ge=1, description="most documents of a session")
    max_hypotheses: int = Field(DEFAULTS.max_hypotheses, ge=1, description="most hypotheses of a session")
    max_targets: int = Field(DEFAULTS.max_targets, ge=1, description="most targets of one Score")
    max_question_characters: int = Field(
        DEFAULTS.max_question_characters, ge=1, description="longest question, and longest target given as text"
    )
    max_passage_bytes: int = Field(
        DEFAULTS.max_passage_bytes, ge=1, description="largest document: title and text in bytes of UTF-8"
    )

    def engine_options(self) -> EngineOptions:
        """What the engine needs to know."""
        given = self.model_dump(exclude={"server", "model"})
        return EngineOptions(**given, max_message_bytes=self.server.max_message_bytes)
