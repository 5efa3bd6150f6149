"""Brings the parts of a checkpoint together: a RAG composite, or an encoder and a generator that are a pair."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from checkpoint_import.recognize import (
    GENERATORS,
    SUPPORTED,
    Recognized,
    Role,
    heads_of,
    recognize,
    transformer_directory,
)
from ragserve.errors import FailedPreconditionError, InvalidInputError, NotFoundError

KIND_OF_ARCHITECTURE = {"RagTokenForGeneration": "rag-token", "RagSequenceForGeneration": "rag-sequence"}
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model")
# What a pair is made of: the option that names a part, and what the part is called in messages.
OPTIONS: dict[Role, str] = {"encoder": "question_encoder", "generator": "generator"}


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
        heads = heads_of(self.composite or {})
        found = [KIND_OF_ARCHITECTURE[name] for name in heads if name in KIND_OF_ARCHITECTURE]
        model_type = (self.composite or {}).get("model_type")
        if not found and model_type in KIND_OF_ARCHITECTURE.values():
            return str(model_type)
        return found[0] if found else None


def open_source(
    src: Path, *, question_encoder: Path | None, generator: Path | None, passage_encoder: Path | None
) -> Source:
    """Bring the parts together: `src` is a composite, or one half of a pair whose other half is named.

    Raises:
        NotFoundError: a directory, configuration or tokenizer is missing.
        InvalidInputError: a part is missing, named twice or of the wrong sort.
        FailedPreconditionError: the composite's configuration lacks a section.
    """
    found = recognize(src)
    parts: dict[str, Part] = {}
    if found.role == "rag":
        parts = {"encoder": _composite_part(src, found.config, "question_encoder")}
        parts["generator"] = _composite_part(src, found.config, "generator")
    elif found.role is None:
        raise InvalidInputError("src", f"{found}. {SUPPORTED}")
    else:
        parts[found.role] = _part(found)
    paths = {"encoder": question_encoder, "generator": generator}
    for slot, option in OPTIONS.items():
        if (path := paths[slot]) is not None:
            parts[slot] = _named_part(found, path, slot, option)
    _check_complete(found, parts)
    composite = found.config if found.role == "rag" else None
    passage = _named_part(found, passage_encoder, "encoder", "passage_encoder") if passage_encoder else None
    _check_generator(parts["generator"])
    return Source(parts["encoder"], parts["generator"], passage, composite, src if composite else None)


def _check_complete(src: Recognized, parts: dict[str, Part]) -> None:
    """Raises InvalidInputError where one half of a pair is not named."""
    for slot, option in OPTIONS.items():
        if slot not in parts:
            raise InvalidInputError(
                option, f"{src}, which is half of a pair: name the folder of the {slot} as well, with {_flag(option)}"
            )


def _composite_part(src: Path, config: dict[str, Any], name: str) -> Part:
    section = config.get(name)
    if not isinstance(section, dict):
        path = src / "config.json"
        raise FailedPreconditionError(f"{path} has no section {name!r}: not a RAG checkpoint", field=str(path))
    tokenizer = _tokenizer_in(src / f"{name}_tokenizer")
    default = "dpr" if name == "question_encoder" else "bart"
    section = {**section, "model_type": section.get("model_type") or default}
    return Part(src, section, tokenizer, prefixes=(f"rag.{name}.", f"{name}."))


def _named_part(src: Recognized, path: Path, slot: Role, option: str) -> Part:
    """The part that an option names.

    Raises:
        InvalidInputError: the option names something else, or `src` is this part already.
    """
    found = recognize(path)
    if src.role == slot and option != "passage_encoder":
        other = "generator" if slot == "encoder" else "question_encoder"
        swapped = f" (and {_flag(option)} {found})" if found.role != slot else ""
        raise InvalidInputError(
            option,
            f"{src} already{swapped}: {_flag(option)} would name a second one. Name the other half of the pair with "
            f"{_flag(other)}",
        )
    if found.role != slot:
        needed = "a BART or T5 generator" if slot == "generator" else "an encoder of texts"
        raise InvalidInputError(option, f"{found}; {_flag(option)} needs {needed}. {SUPPORTED}")
    return _part(found)


def _part(found: Recognized) -> Part:
    transformer = transformer_directory(found.directory)
    has_own = any((transformer / name).is_file() for name in TOKENIZER_FILES)
    return Part(found.directory, found.config, _tokenizer_in(transformer if has_own else found.directory))


def _flag(option: str) -> str:
    return "--" + option.replace("_", "-")


def _tokenizer_in(directory: Path) -> Path:
    if not any((directory / name).is_file() for name in TOKENIZER_FILES):
        raise NotFoundError(f"{directory} has no tokenizer: none of {', '.join(TOKENIZER_FILES)}", field=str(directory))
    return directory


def _check_generator(part: Part) -> None:
    """A composite's generator is a section of its configuration, which says what it is."""
    path = part.directory / "config.json"
    if part.config["model_type"] not in GENERATORS:
        raise FailedPreconditionError(
            f"{path}: the composite's generator has model_type {part.config['model_type']!r}. {SUPPORTED}",
            field=str(path),
        )
