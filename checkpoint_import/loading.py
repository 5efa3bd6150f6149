"""Builds transformers models and tokenizers from the parts of a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers import __version__ as transformers_version
from transformers.utils import logging as transformers_logging

from checkpoint_import.recognize import SUPPORTED, read_json
from checkpoint_import.source import Part
from checkpoint_import.weights import Weights
from ragserve.errors import FailedPreconditionError
from ragserve.files import exists
from ragserve.printable import counted

MOST_EXTRA_IDS = 10_000  # T5 has 100
MOST_TOKENS = 2**20  # of an input; a tokenizer that says more has no limit
DEFAULT_TOKENS = 512  # of an input, where nothing limits it
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
        if model_type not in CONFIG_MAPPING:
            own_code = " (the checkpoint brings its own code, which is not run)" if part.config.get("auto_map") else ""
            raise FailedPreconditionError(
                f"{path}: transformers {transformers_version} does not know model_type {model_type!r}{own_code}. "
                f"{SUPPORTED}",
                field=str(path),
            ) from error
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
        if "mismatch" not in str(error):
            raise
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


def read_tokenizer(
    part: Part, config: PreTrainedConfig, options: Mapping[str, Any] | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer of a part, in its fast form, loaded with `options` of transformers.

    Tokens may be added to a tokenizer without rows in the model (bart-large-cnn: `<mask>`): a text that holds one is
    refused when it is read. A tokenizer whose own vocabulary goes beyond the model is another model's.

    Raises:
        FailedPreconditionError: it cannot be read, or it is another model's.
    """
    _check_extra_ids(part.tokenizer / "tokenizer_config.json")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            part.tokenizer, config=config, local_files_only=True, **(options or {})
        )
        beyond = beyond_vocabulary(tokenizer, config.vocab_size)
        added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    except Exception as error:  # damaged files are told by many kinds of exception
        raise FailedPreconditionError(
            f"{part.tokenizer} has no tokenizer that can be read: {_first_line(error)}", field=str(part.tokenizer)
        ) from error
    if foreign := [token for token in beyond if token not in added]:
        size = len(tokenizer.backend_tokenizer.get_vocab())
        raise FailedPreconditionError(
            f"{part.tokenizer} has {size} tokens, but the model only {config.vocab_size}: another model's tokenizer "
            f"({counted(len(foreign), 'token')} of its vocabulary without a row in the model, such as {foreign[0]!r})",
            field=str(part.tokenizer),
        )
    return tokenizer


def _check_extra_ids(path: Path) -> None:
    """Refuses more of T5's sentinel tokens than memory holds: transformers makes them all."""
    count = read_json(path).get("extra_ids", 0) if exists(path, Path.is_file) else 0
    if not isinstance(count, int) or not 0 <= count <= MOST_EXTRA_IDS:
        raise FailedPreconditionError(
            f"{path}: extra_ids is {str(count)[:40]}; expected 0 to {MOST_EXTRA_IDS}, and 100 for T5", field=str(path)
        )


def beyond_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> list[str]:
    """The tokens whose ids have no row in a model, by id."""
    vocabulary: dict[str, int] = tokenizer.backend_tokenizer.get_vocab()
    return sorted((token for token, row in vocabulary.items() if row >= vocab_size), key=vocabulary.__getitem__)


def special_token_warnings(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> tuple[str, ...]:
    """Where model and tokenizer disagree on a special token: then they were probably not made for each other."""
    warnings = []
    for name in ("eos_token", "pad_token"):
        own, models = getattr(tokenizer, f"{name}_id"), getattr(config, f"{name}_id", None)
        allowed = models if isinstance(models, list) else [models]
        if own is not None and models is not None and own not in allowed:
            warnings.append(
                f"the tokenizer's {name} has the id {own}, and the model's configuration says {models}: "
                "check that the tokenizer is this model's"
            )
    return tuple(warnings)


def longest_input(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, own: int | None) -> int:
    """Largest number of tokens of an input: the folder's own limit (`own`), else the tokenizer's.

    It is never above the number of position embeddings, where the model has them.
    """
    limit = own or int(tokenizer.model_max_length)
    positions = getattr(config, "max_position_embeddings", None)
    if positions is None:  # T5's are relative
        return limit if limit <= MOST_TOKENS else DEFAULT_TOKENS
    if config.model_type in POSITIONS_AFTER_PADDING:
        positions -= int(config.pad_token_id) + 1
    return min(limit, int(positions))


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
