"""Finds out what a Hugging Face directory is: a RAG composite, an encoder or a generator."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ragserve.errors import FailedPreconditionError, InvalidInputError, NotFoundError
from ragserve.files import exists, file_errors, require_file

Role = Literal["rag", "encoder", "generator"]
Pooling = Literal["cls", "mean", "max"]

GENERATORS = ("bart", "t5")
KIND_OF_ARCHITECTURE = {"RagTokenForGeneration": "rag-token", "RagSequenceForGeneration": "rag-sequence"}
RAG_MODELS = ("rag", "rag-token", "rag-sequence")  # model_type; the latter two in some old files
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class Part:
    """One model of a checkpoint.

    `directory` holds its weights, `config` is its Hugging Face configuration (a section of the composite's),
    `tokenizer` is where its tokenizer is, and `prefixes` are what its weights' names may start with.
    """

    directory: Path
    config: dict[str, Any]
    tokenizer: Path
    prefixes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """What is imported. `composite` is the top-level configuration of a RAG composite, or None for a pair."""

    encoder: Part
    generator: Part
    passage_encoder: Part | None
    composite: dict[str, Any] | None
    composite_directory: Path | None

    @property
    def trained_kind(self) -> str | None:
        """rag-token or rag-sequence, when the checkpoint says."""
        architectures = (self.composite or {}).get("architectures") or []
        found = [KIND_OF_ARCHITECTURE[name] for name in architectures if name in KIND_OF_ARCHITECTURE]
        model_type = (self.composite or {}).get("model_type")
        if not found and model_type in KIND_OF_ARCHITECTURE.values():
            return str(model_type)
        return found[0] if found else None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        NotFoundError: the file is missing.
        FailedPreconditionError: it holds something else.
    """
    require_file(path, "is this a Hugging Face checkpoint?")
    try:
        with file_errors("read", path):
            body = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FailedPreconditionError(f"{path} is not JSON: {error}", field=str(path)) from error
    if not isinstance(body, dict):
        raise FailedPreconditionError(f"{path} does not hold a JSON object", field=str(path))
    return body


def transformer_directory(directory: Path) -> Path:
    """Where the transformer's config.json is: sentence-transformers may keep it in a folder of its own."""
    if (directory / "modules.json").is_file():
        modules = read_list(directory / "modules.json")
        return directory / str(modules[0].get("path", "")) if modules else directory
    return directory


def read_list(path: Path) -> list[dict[str, Any]]:
    """A JSON list of objects from a file.

    Raises:
        FailedPreconditionError: it holds something else.
    """
    try:
        with file_errors("read", path):
            body = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FailedPreconditionError(f"{path} is not JSON: {error}", field=str(path)) from error
    if not isinstance(body, list) or not all(isinstance(entry, dict) for entry in body):
        raise FailedPreconditionError(f"{path} does not hold a list of modules", field=str(path))
    return body


def role_of(directory: Path) -> tuple[Role, dict[str, Any]]:
    """What a directory holds, by `model_type`, and its configuration.

    Raises:
        NotFoundError: the directory or its config.json is missing.
    """
    if not exists(directory, Path.is_dir):
        raise NotFoundError(f"{directory} is not a directory", field=str(directory))
    config = read_json(transformer_directory(directory) / "config.json")
    model_type = config.get("model_type")
    if model_type in RAG_MODELS:
        return "rag", config
    return ("generator" if model_type in GENERATORS else "encoder"), config


def open_source(
    src: Path, *, question_encoder: Path | None, generator: Path | None, passage_encoder: Path | None
) -> Source:
    """Bring the parts together: `src` is a composite, or one half of a pair whose other half is named.

    Raises:
        NotFoundError: a directory, configuration or tokenizer is missing.
        InvalidInputError: a part is missing, named twice or of the wrong sort.
        FailedPreconditionError: the composite's configuration lacks a section.
    """
    role, config = role_of(src)
    parts: dict[str, Part] = {}
    if role == "rag":
        parts = {"encoder": _composite_part(src, config, "question_encoder")}
        parts["generator"] = _composite_part(src, config, "generator")
    else:
        parts[role] = _pair_part(src, role)
    for option, slot, path in (
        ("question_encoder", "encoder", question_encoder),
        ("generator", "generator", generator),
    ):
        if path is None:
            continue
        if slot == role:
            raise InvalidInputError(option, f"{src} is a {slot} already: name the other half of the pair")
        parts[slot] = _pair_part(path, slot)
    for option, slot in (("question_encoder", "encoder"), ("generator", "generator")):
        if slot not in parts:
            raise InvalidInputError(
                option,
                f"{src} is no RAG composite (model_type {config.get('model_type')!r}): give its {option} as well",
            )
    composite = config if role == "rag" else None
    passage = _pair_part(passage_encoder, "encoder") if passage_encoder else None
    _check_generator(parts["generator"])
    return Source(parts["encoder"], parts["generator"], passage, composite, src if composite else None)


def _composite_part(src: Path, config: dict[str, Any], name: str) -> Part:
    section = config.get(name)
    if not isinstance(section, dict):
        path = src / "config.json"
        raise FailedPreconditionError(f"{path} has no section {name!r}: not a RAG checkpoint", field=str(path))
    tokenizer = _tokenizer_in(src / f"{name}_tokenizer")
    default = "dpr" if name == "question_encoder" else "bart"
    section = {**section, "model_type": section.get("model_type") or default}
    return Part(src, section, tokenizer, prefixes=(f"rag.{name}.", f"{name}."))


def _pair_part(directory: Path, slot: str) -> Part:
    role, config = role_of(directory)
    if role != slot:
        raise InvalidInputError(
            "question_encoder" if slot == "encoder" else slot,
            f"{directory} has model_type {config.get('model_type')!r}, which is no {slot}",
        )
    transformer = transformer_directory(directory)
    has_own = any((transformer / name).is_file() for name in TOKENIZER_FILES)
    return Part(directory, config, _tokenizer_in(transformer if has_own else directory))


def _tokenizer_in(directory: Path) -> Path:
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise NotFoundError(f"{directory} has no tokenizer: none of {', '.join(TOKENIZER_FILES)}", field=str(directory))
    return directory


def _check_generator(part: Part) -> None:
    if part.config["model_type"] not in GENERATORS:
        raise FailedPreconditionError(
            f"{part.directory}: the generator has model_type {part.config['model_type']!r}; "
            f"ragserve serves {' and '.join(GENERATORS)}",
            field=str(part.directory / "config.json"),
        )
