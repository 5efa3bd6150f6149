"""Builds transformers models and tokenizers from the parts of a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from checkpoint_import.source import Part, read_json
from checkpoint_import.weights import Weights
from ragserve.errors import FailedPreconditionError

# Models whose first position is the padding token's id plus 1.
POSITIONS_AFTER_PADDING = ("roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet")


def quiet_transformers() -> None:
    """Keep progress bars and load reports of transformers off the terminal; what matters is checked here."""
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def read_config(part: Part) -> PreTrainedConfig:
    """The Hugging Face configuration object of a part.

    Raises:
        FailedPreconditionError: transformers does not know it, or a value in it is wrong.
    """
    path = part.directory / "config.json"
    values = dict(part.config)
    model_type = str(values.pop("model_type", ""))
    try:
        return AutoConfig.for_model(model_type, **values)
    except Exception as error:  # unknown model types and wrong values are told by many kinds of exception
        raise FailedPreconditionError(
            f"{path} cannot be read as a model: {_first_line(error)}", field=str(path)
        ) from error


def build_model(model_class: Any, config: PreTrainedConfig, weights: Weights, optional: tuple[str, ...] = ()) -> Any:
    """A model with its weights, on the CPU, in evaluation mode.

    `optional` names parts of a weight's name that may be missing (a pooler that is not used).

    Raises:
        FailedPreconditionError: weights are missing or have other shapes than the configuration says.
    """
    try:
        model, report = model_class.from_pretrained(
            None, config=config, state_dict=dict(weights.tensors), output_loading_info=True, dtype=torch.float32
        )
    except RuntimeError as error:
        raise FailedPreconditionError(
            f"{weights.path} does not have the shapes that config.json says: {_first_line(error)}",
            field=str(weights.path),
        ) from error
    missing = sorted(name for name in report["missing_keys"] if not any(part in name for part in optional))
    if missing:
        raise FailedPreconditionError(
            f"{weights.path} lacks {len(missing)} of the weights of {model_class.__name__}, such as {missing[0]}",
            field=str(weights.path),
        )
    return model.eval()


def read_tokenizer(part: Part, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of a part, in its fast form.

    Raises:
        FailedPreconditionError: it cannot be read, or has more tokens than the model.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(part.tokenizer, config=config, local_files_only=True)
        size = len(tokenizer.backend_tokenizer.get_vocab())
    except Exception as error:  # damaged files are told by many kinds of exception
        raise FailedPreconditionError(
            f"{part.tokenizer} has no tokenizer that can be read: {_first_line(error)}", field=str(part.tokenizer)
        ) from error
    if size > config.vocab_size:
        raise FailedPreconditionError(
            f"{part.tokenizer} has {size} tokens, but the model only {config.vocab_size}: another model's tokenizer",
            field=str(part.tokenizer),
        )
    return tokenizer


def longest_input(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, directory: Path) -> int:
    """Largest number of tokens that both the tokenizer and the position embeddings of an encoder allow."""
    positions = int(getattr(config, "max_position_embeddings", 512))
    if config.model_type in POSITIONS_AFTER_PADDING:
        positions -= int(config.pad_token_id) + 1
    limits = [int(tokenizer.model_max_length), positions]
    own = directory / "sentence_bert_config.json"
    if own.is_file():
        limits.append(int(read_json(own).get("max_seq_length") or limits[0]))
    return min(limits)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
