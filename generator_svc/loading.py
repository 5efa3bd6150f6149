"""Loads the generator of a model directory: weights, tokenizer, and what the checkpoint says about decoding."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from generator_svc.commands import Mode
from generator_svc.models.bart import Bart
from generator_svc.models.base import Seq2SeqModel
from generator_svc.models.numerics import NUMERICS, Numerics
from generator_svc.models.precision import Precision
from generator_svc.models.t5 import T5
from generator_svc.text import Codec, load_codec
from generator_svc.weights import TensorFile, WeightMap
from ragserve.checkpoint import IMPORT_AGAIN, Manifest, RagSettings, load_manifest, verify_files
from ragserve.errors import FailedPreconditionError
from ragserve.files import exists, file_errors, require_file

PART = "generator"
WEIGHTS = "model.safetensors"
FAMILIES: dict[str, Callable[[Any, WeightMap, torch.device, Numerics], Seq2SeqModel]] = {"bart": Bart, "t5": T5}
TRAINED_MODES: dict[str, Mode | None] = {"rag-token": "token", "rag-sequence": "sequence", "pair": None}


@dataclass(frozen=True)
class SpecialTokens:
    """Tokens that decoding needs to know."""

    decoder_start: int
    eos: tuple[int, ...]
    pad: int
    bos: int | None


@dataclass(frozen=True)
class LoadedGenerator:
    """A generator ready to run. `defaults` are Hugging Face generation parameters by their own names."""

    model: Seq2SeqModel
    model_type: str
    codec: Codec
    rag: RagSettings
    trained_mode: Mode | None
    tokens: SpecialTokens
    defaults: Mapping[str, Any]
    device: torch.device


def load_generator(directory: Path, device: torch.device, precision: Precision = "float32") -> LoadedGenerator:
    """Load MODEL/generator.

    Raises:
        NotFoundError: the manifest or a file is missing.
        DataLossError: a file's checksum is wrong, or the weights are truncated.
        FailedPreconditionError: a file cannot be read, or does not hold a BART or T5.
    """
    manifest = load_manifest(directory)
    verify_files(directory, manifest, PART)
    part = directory / PART
    config = _load_config(part)
    model = FAMILIES[config.model_type](config, WeightMap(TensorFile(part / WEIGHTS)), device, NUMERICS[precision])
    generation = _generation(part, manifest)
    return LoadedGenerator(
        model=model,
        model_type=config.model_type,
        codec=load_codec(part, config.vocab_size),
        rag=manifest.rag,
        trained_mode=TRAINED_MODES[manifest.kind],
        tokens=_special_tokens(config, generation, part / "config.json"),
        defaults={"n_docs": manifest.rag.n_docs, **generation},
        device=device,
    )


def _load_config(part: Path) -> Any:
    path = part / "config.json"
    require_file(path, IMPORT_AGAIN)
    try:
        config = AutoConfig.from_pretrained(str(part), local_files_only=True)
    except Exception as error:
        raise FailedPreconditionError(f"{path} cannot be read: {error}", field=str(path)) from error
    if config.model_type not in FAMILIES:
        raise FailedPreconditionError(
            f"{path}: model_type {config.model_type!r} is none of {', '.join(FAMILIES)}", field=str(path)
        )
    return config


def _generation(part: Path, manifest: Manifest) -> dict[str, Any]:
    """Generation parameters: the manifest's over generation_config.json's."""
    path = part / "generation_config.json"
    stored: dict[str, Any] = {}
    if exists(path, Path.is_file):
        try:
            with file_errors("read", path):
                stored = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise FailedPreconditionError(f"{path} is not JSON: {error}", field=str(path)) from error
    both = {**stored, **manifest.generation}
    return {name: value for name, value in both.items() if value is not None}


def _special_tokens(config: Any, generation: Mapping[str, Any], path: Path) -> SpecialTokens:
    def find(name: str) -> Any:
        value = generation.get(name)
        return getattr(config, name, None) if value is None else value

    eos, pad = find("eos_token_id"), find("pad_token_id")
    start = find("decoder_start_token_id")
    if start is None:
        start = find("bos_token_id")
    if eos is None or pad is None or start is None:
        raise FailedPreconditionError(
            f"{path} names no eos_token_id, pad_token_id or decoder_start_token_id", field=str(path)
        )
    return SpecialTokens(
        decoder_start=start,
        eos=tuple(eos) if isinstance(eos, list) else (eos,),
        pad=pad,
        bos=find("bos_token_id"),
    )
