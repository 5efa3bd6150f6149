"""The generator as safetensors, with its configuration and fast tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import BartForConditionalGeneration, GenerationConfig, T5ForConditionalGeneration

from checkpoint_import.loading import build_model, read_config, read_tokenizer, special_token_warnings
from checkpoint_import.source import Part
from checkpoint_import.weights import read_weights
from ragserve.untrained import looks_untrained, untrained_warning

MODEL_CLASSES = {"bart": BartForConditionalGeneration, "t5": T5ForConditionalGeneration}
ONE_FILE = "1TB"  # larger than any shard


def export_generator(part: Part, out: Path, generation: dict[str, Any], *, allow_pickle: bool) -> tuple[str, ...]:
    """Write `config.json`, `generation_config.json`, `model.safetensors` and the tokenizer's files into `out`.

    Returns what the user should know about the model.

    Raises:
        FailedPreconditionError: the checkpoint cannot be read.
        DataLossError: a weight file is truncated.
    """
    config = read_config(part)
    tokenizer = read_tokenizer(part, config)
    weights = read_weights(part.directory, allow_pickle=allow_pickle)
    if part.prefixes:
        weights = weights.below(*part.prefixes)
    untrained = looks_untrained(weights.tensors, weights.tensors.__getitem__)
    model = build_model(MODEL_CLASSES[part.config["model_type"]], config, weights)
    model.generation_config = GenerationConfig()  # type: ignore[no-untyped-call]
    model.save_pretrained(out, max_shard_size=ONE_FILE)
    tokenizer.save_pretrained(out)
    (out / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n", encoding="utf-8")
    warnings = special_token_warnings(tokenizer, config)
    return (*warnings, untrained_warning("generator")) if untrained else warnings
