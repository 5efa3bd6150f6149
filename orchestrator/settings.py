"""Settings of the orchestrator; every one is documented here and nowhere else."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from ragserve.errors import InvalidInputError
from ragserve.passage_rules import MAX_PASSAGE_BYTES
from ragserve.serving.settings import ServerSettings
from ragserve.targets import parse_target


def _target(value: str, info: ValidationInfo) -> str:
    try:
        return parse_target(value, info.field_name or "target")
    except InvalidInputError as error:
        raise ValueError(error.message) from error


Target = Annotated[str, AfterValidator(_target)]


class OrchestratorSettings(BaseSettings):
    """Decodes answers from the exact marginal over retrieved passages."""

    model_config = SettingsConfigDict(
        env_prefix="RAGSERVE_ORCHESTRATOR_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    server: ServerSettings = Field(ServerSettings(port=50051, metrics_port=9451), description="where it listens")
    retriever: Target = Field("127.0.0.1:50061", description="gRPC target of the retriever replicas")
    generator: Target = Field("127.0.0.1:50062", description="gRPC target of the generator replicas")
    max_attempts: int = Field(3, ge=1, le=5, description="tries of a call to replicas that are gone, or full")
    startup_wait_seconds: float = Field(30.0, ge=0, description="how long to wait for both at the start")
    info_max_age_seconds: float = Field(30.0, gt=0, description="when the generator's state is asked for again")
    default_timeout_seconds: float = Field(300.0, gt=0, description="deadline of a request that comes without one")

    candidates: int = Field(16, ge=2, description="least number of candidate tokens (M) for each hypothesis and step")
    sampling_candidates: int = Field(128, ge=2, description="the same when sampling")
    widen_factor: int = Field(8, ge=2, description="how many times more candidates a Widen asks for")

    default_n_docs: int = Field(5, ge=1, description="passages, when neither request nor checkpoint say")
    default_max_length: int = Field(50, ge=2, description="longest answer in tokens, when neither say")
    max_question_characters: int = Field(10_000, ge=1, description="longest question")
    max_answer_characters: int = Field(10_000, ge=1, description="longest answer to score")
    max_passage_bytes: int = Field(
        MAX_PASSAGE_BYTES, ge=1, description="largest document of a request: title and text in bytes of UTF-8"
    )
    max_n_docs: int = Field(100, ge=1, description="most passages of a request")
    max_beams: int = Field(32, ge=1, description="most beams, and most samples")
    max_bad_words: int = Field(1_000, ge=0, description="most bad words of a request")
