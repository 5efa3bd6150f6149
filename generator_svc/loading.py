"""Loads the generator of a model directory: weights, tokenizer, and what the checkpoint says about decoding."""

from __future__ import annotations

import logging
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
from ragserve.checkpoint import (
    IMPORT_AGAIN,
    MANIFEST_NAME,
    Manifest,
    RagSettings,
    load_manifest,
    query_encoder_id,
    verify_files,
)
from ragserve.errors import FailedPreconditionError
from ragserve.files import exists, file_errors, parse_json, require_file
from ragserve.reasons import reason_of
from ragserve.search_settings import read_search_settings
from ragserve.token_rules import SpecialTokens
from ragserve.untrained import looks_untrained, untrained_warning

PART = "generator"
WEIGHTS = "model.safetensors"
FAMILIES: dict[str, Callable[[Any, WeightMap, torch.device, Numerics], Seq2SeqModel]] = {"bart": Bart, "t5": T5}
TRAINED_MODES: dict[str, Mode | None] = {"rag-token": "token", "rag-sequence": "sequence", "pair": None}

log = logging.getLogger(__name__)


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
    warnings: tuple[str, ...]
    query_encoder: str  # see `query_encoder_id`
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
    tokens, defaults = _generation_settings(directory, manifest, config)
    warnings = _warnings(part, manifest)
    return LoadedGenerator(
        model=_build_model(part, config, device, precision),
        model_type=config.model_type,
        codec=load_codec(part, config.vocab_size),
        rag=manifest.rag,
        trained_mode=TRAINED_MODES[manifest.kind],
        tokens=tokens,
        defaults=defaults,
        warnings=warnings,
        query_encoder=query_encoder_id(manifest),
        device=device,
    )


def _warnings(part: Path, manifest: Manifest) -> tuple[str, ...]:
    """The warnings of the import, and one about untrained weights. The log has them before the first reply does."""
    file = TensorFile(part / WEIGHTS)
    untrained = (untrained_warning("generator"),) if looks_untrained(file.names, file.read) else ()
    warnings = tuple(dict.fromkeys((*manifest.warnings, *untrained)))
    for text in warnings:
        log.warning(text)
    return warnings


def _build_model(part: Path, config: Any, device: torch.device, precision: Precision) -> Seq2SeqModel:
    path = part / "config.json"
    weights = WeightMap(TensorFile(part / WEIGHTS))
    try:
        return FAMILIES[config.model_type](config, weights, device, NUMERICS[precision])
    except (ArithmeticError, AttributeError, TypeError, ValueError) as error:
        raise FailedPreconditionError(
            f"{path} describes no model that can be built: {reason_of(error)}", field=str(path)
        ) from error


def _generation_settings(directory: Path, manifest: Manifest, config: Any) -> tuple[SpecialTokens, dict[str, Any]]:
    """How answers begin and end, and the defaults of a search."""
    generation = _generation(directory / PART, manifest)
    tokens = _special_tokens(manifest, config, generation, directory)
    return tokens, {"n_docs": manifest.rag.n_docs, **_search_settings(generation, config, directory)}


def _load_config(part: Path) -> Any:
    path = part / "config.json"
    require_file(path, IMPORT_AGAIN)
    try:
        config = AutoConfig.from_pretrained(str(part), local_files_only=True)
    except Exception as error:
        raise FailedPreconditionError(f"{path} cannot be read: {reason_of(error)}", field=str(path)) from error
    if config.model_type not in FAMILIES:
        raise FailedPreconditionError(
            f"{path}: model_type {config.model_type!r} is none of {', '.join(FAMILIES)}", field=str(path)
        )
    return config


def _generation(part: Path, manifest: Manifest) -> dict[str, Any]:
    """Generation parameters: the manifest's over generation_config.json's."""
    path = part / "generation_config.json"
    stored: Any = {}
    if exists(path, Path.is_file):
        try:
            with file_errors("read", path):
                stored = parse_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise FailedPreconditionError(f"{path} is not JSON: {error}", field=str(path)) from error
        if not isinstance(stored, dict):
            raise FailedPreconditionError(f"{path} does not hold a JSON object", field=str(path))
    both = {**stored, **manifest.generation}
    return {name: value for name, value in both.items() if value is not None}


def _search_settings(generation: Mapping[str, Any], config: Any, directory: Path) -> dict[str, Any]:
    path = directory / MANIFEST_NAME
    try:
        return read_search_settings(generation, config.vocab_size)
    except ValueError as error:
        raise FailedPreconditionError(
            f"{path}, or {PART}/generation_config.json beside it: {error}", field=str(path)
        ) from error


def _special_tokens(manifest: Manifest, config: Any, generation: Mapping[str, Any], directory: Path) -> SpecialTokens:
    """The tokens of the manifest, or of the configuration files where a manifest of an earlier version has none."""
    if manifest.tokens is not None:
        settings: Mapping[str, Any] = manifest.tokens
    else:
        names = ("decoder_start_token_id", "eos_token_id", "pad_token_id", "bos_token_id")
        known = {name: getattr(config, name, None) for name in names}
        settings = {**{name: value for name, value in known.items() if value is not None}, **generation}
        settings.setdefault("decoder_start_token_id", settings.get("bos_token_id"))
    path = directory / MANIFEST_NAME if manifest.tokens is not None else directory / PART / "config.json"
    try:
        return SpecialTokens.read(settings, config.vocab_size)
    except ValueError as error:
        raise FailedPreconditionError(f"{path}: {error}", field=str(path)) from error
