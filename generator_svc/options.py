"""How the engine is set up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from generator_svc.models.precision import Precision
from ragserve.passage_rules import MAX_PASSAGE_BYTES

Device = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class EngineOptions:
    """Named and documented as the settings are."""

    device: Device = "auto"
    precision: Precision = "float32"
    threads: int = 0
    max_sessions: int = 64
    max_rows: int = 2048
    cache_bytes: int = 4 * 2**30
    encoder_cache_bytes: int = 0
    step_rows: int = 0
    prefill_tokens: int = 0
    idle_seconds: float = 60.0
    draft_tokens: int = 0
    max_context_tokens: int = 1024
    max_target_tokens: int = 1024
    max_documents: int = 100
    max_hypotheses: int = 512
    max_targets: int = 512
    max_question_characters: int = 10_000
    max_passage_bytes: int = MAX_PASSAGE_BYTES
    max_message_bytes: int = 64 * 2**20
