"""The manifest of a model directory: what `ragserve import-checkpoint` writes and the services load.

MODEL/ragserve.json            this manifest
MODEL/query_encoder/           model.onnx, tokenizer.json, encoder.json
MODEL/passage_encoder/         the same; absent when passages are encoded by the query encoder
MODEL/generator/               config.json, model.safetensors, tokenizer.json, ...
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ragserve.errors import DataLossError, FailedPreconditionError
from ragserve.files import file_errors, require_file

FORMAT_VERSION = 1
MANIFEST_NAME = "ragserve.json"
LARGEST_COUNT = 2**31 - 1
KINDS = ("rag-token", "rag-sequence", "pair")
IMPORT_AGAIN = "import the checkpoint again"  # what to do about a model directory that lacks a file


@dataclass(frozen=True)
class RagSettings:
    """How contexts are built (Lewis et al., appendix; `transformers` RagConfig)."""

    n_docs: Annotated[int, Field(ge=1, le=LARGEST_COUNT)] = 5
    max_combined_length: Annotated[int, Field(ge=1, le=LARGEST_COUNT)] = 300  # tokens
    prefix: str = ""
    title_sep: str = " / "
    doc_sep: str = " // "


@dataclass(frozen=True)
class Manifest:
    """Contents of `ragserve.json`.

    `query_prompt` and `passage_prompt` are what the encoders put before each question and each passage; the encoders
    themselves read them from their `encoder.json`.
    `generation` holds Hugging Face generation parameters by their own names (num_beams, max_length, ...).
    `files` maps each file, relative to the directory, to its SHA-256. `tokens` is `SpecialTokens` as JSON, or None in
    a manifest of an earlier version. `warnings` say what the checkpoint asks for that is not served:
    the generator reports them. `encoder_warnings` are those of the encoders, which the retriever reports.
    """

    kind: str
    rag: RagSettings = field(default_factory=RagSettings)
    score_scale: float = 1.0
    query_prompt: str = ""
    passage_prompt: str = ""
    generation: dict[str, Any] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, Any] | None = None
    warnings: tuple[str, ...] = ()
    encoder_warnings: tuple[str, ...] = ()

    def to_json(self) -> str:
        """The manifest as it stands on disk."""
        prompts = {"query_prompt": self.query_prompt, "passage_prompt": self.passage_prompt}
        prompts = {name: text for name, text in prompts.items() if text}
        body = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "files": self.files,
            "retriever": {"score_scale": self.score_scale, **prompts},
            "rag": asdict(self.rag),
            "generation": self.generation,
            **({} if self.tokens is None else {"tokens": self.tokens}),
            **({"warnings": list(self.warnings)} if self.warnings else {}),
            **({"encoder_warnings": list(self.encoder_warnings)} if self.encoder_warnings else {}),
        }
        return json.dumps(body, indent=2) + "\n"


class _Retriever(BaseModel):
    score_scale: float = Field(1.0, allow_inf_nan=False)
    query_prompt: str = ""
    passage_prompt: str = ""


class _Version(BaseModel):
    format_version: int


class _Body(BaseModel):
    """The manifest as it stands on disk."""

    model_config = ConfigDict(strict=True)

    kind: str
    rag: RagSettings = RagSettings()
    retriever: _Retriever = _Retriever()
    generation: dict[str, Any] = {}
    files: dict[str, str] = {}
    tokens: dict[str, Any] | None = None
    warnings: list[str] = []
    encoder_warnings: list[str] = []


def first_reason(error: ValueError) -> str:
    """The first line of what is wrong, with the place in the document where pydantic names it."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        return f"{place}: {first['msg']}" if place else str(first["msg"])
    return str(error).partition("\n")[0]


def load_manifest(directory: Path) -> Manifest:
    """Read and check the manifest of a model directory.

    Raises:
        NotFoundError: the directory or its manifest is not there.
        FailedPreconditionError: the manifest cannot be read, or is of a format or kind not known here.
    """
    path = directory / MANIFEST_NAME
    require_file(path, "a model directory is written by 'ragserve import-checkpoint'")
    try:
        with file_errors("read", path):
            text = path.read_text(encoding="utf-8")
        version = _Version.model_validate_json(text).format_version
        if version != FORMAT_VERSION:
            raise FailedPreconditionError(
                f"{path} has format_version {version}; this version of ragserve reads {FORMAT_VERSION}", field=str(path)
            )
        body = _Body.model_validate_json(text)
    except ValueError as error:
        raise FailedPreconditionError(
            f"{path} is not a ragserve manifest: {first_reason(error)}", field=str(path)
        ) from error
    if body.kind not in KINDS:
        raise FailedPreconditionError(f"{path}: kind {body.kind!r} is none of {', '.join(KINDS)}", field=str(path))
    return Manifest(
        kind=body.kind,
        rag=body.rag,
        score_scale=body.retriever.score_scale,
        query_prompt=body.retriever.query_prompt,
        passage_prompt=body.retriever.passage_prompt,
        generation=body.generation,
        files=body.files,
        tokens=body.tokens,
        warnings=tuple(body.warnings),
        encoder_warnings=tuple(body.encoder_warnings),
    )


def query_encoder_id(manifest: Manifest) -> str:
    """The first 16 hex digits of the SHA-256 of a model directory's query encoder; empty: it is not listed.

    Retriever and generator of a RAG model are trained together: both say which query encoder is theirs.
    """
    return manifest.files.get("query_encoder/model.onnx", "")[:16]


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(directory: Path) -> dict[str, str]:
    """SHA-256 of every file below the directory but the manifest, by relative path."""
    return {
        path.relative_to(directory).as_posix(): sha256_of(path)
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != MANIFEST_NAME
    }


def verify_files(directory: Path, manifest: Manifest, part: str) -> None:
    """Check the files of one part (`query_encoder`, `generator`, ...) against the manifest.

    Raises:
        NotFoundError: a listed file is missing.
        DataLossError: a file is not the one that was written (truncated, altered).
    """
    for name, expected in manifest.files.items():
        if not name.startswith(f"{part}/"):
            continue
        path = directory / name
        require_file(path, IMPORT_AGAIN)
        with file_errors("read", path):
            found = sha256_of(path)
        if found != expected:
            raise DataLossError(
                f"{path} does not have the checksum that {MANIFEST_NAME} lists (truncated or altered): {IMPORT_AGAIN}",
                field=str(path),
            )
