"""How a checkpoint generates: every setting with the precedence of transformers, which computes it itself.

Two classes of transformers read a composite, and they read different places:

- `RagTokenForGeneration` has the composite's generation_config.json; without that file, the top level of config.json,
  then its `generator` section.
- `RagSequenceForGeneration` calls the generator's own `generate`, which knows only the `generator` section.

So each mode has its own token rules. Search settings are RAG-Token's in both modes: transformers 4 honoured those of
the top level, which the published RAG-Sequence checkpoints carry, and transformers 5 drops them without a word.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig
from transformers.activations import ACT2FN

from checkpoint_import.fields import MODEL_UNSERVED, RAG_UNSERVED, SERVED, UNSERVED, Unserved
from checkpoint_import.recognize import read_json
from checkpoint_import.source import Source
from ragserve.activations import LEARNED
from ragserve.arguments import shown
from ragserve.errors import FailedPreconditionError, RagserveError
from ragserve.search_settings import SEARCH_SETTINGS, read_search_settings
from ragserve.token_rules import SpecialTokens

OWN_FILE, MODEL_FILE = "generation_config.json", "config.json"


@dataclass(frozen=True)
class Generation:
    """Search settings and token rules for the manifest, and warnings about what is not served."""

    search: dict[str, Any]
    tokens: SpecialTokens
    warnings: tuple[str, ...]

    def hugging_face(self) -> dict[str, Any]:
        """The settings of token mode by their Hugging Face names, as in generation_config.json."""
        rules = {name: value for name, value in asdict(self.tokens.token_rules).items() if value not in (None, ())}
        for name in ("eos_token_id", "forced_eos_token_id"):
            if len(rules.get(name, ())) == 1:
                rules[name] = rules[name][0]
        shared = {"pad_token_id": self.tokens.pad_token_id, "bos_token_id": self.tokens.bos_token_id}
        return {**rules, **{name: value for name, value in shared.items() if value is not None}, **self.search}


def read_generation(source: Source, config: PreTrainedConfig) -> Generation:
    """The settings of a checkpoint whose generator has this configuration.

    Raises:
        FailedPreconditionError: a value cannot be used; the message names file and setting.
    """
    directory, composite = source.generator.directory, source.composite
    if directory != source.composite_directory:
        composite = None  # a generator that an option names brings its own settings
    _check_activation(directory / MODEL_FILE, config)
    _check_padding(directory / MODEL_FILE, config, "" if composite is None else "generator.")
    raw = source.generator.config if composite is None else composite
    own = directory / OWN_FILE
    of_model = _read(directory / MODEL_FILE, lambda: _from_model(raw))
    token = _read(own, lambda: _from_file(own)) if own.is_file() else of_model
    path = own if own.is_file() else directory / MODEL_FILE
    of_generator = _read(directory / MODEL_FILE, lambda: _from_model(config))
    warnings = [*_unserved(token, path.name)]
    if own.is_file():
        warnings += _overridden(of_model, token, None if composite is None else of_generator)
    sequence = token if composite is None else of_generator
    settings = [_with_start(one, of_generator, path.name, warnings) for one in (token, sequence)]
    for mode, one in zip(("RAG-Token", "RAG-Sequence"), settings, strict=True):
        if one.get("eos_token_id") in (None, []):
            warnings.append(f"{mode} has no end token: its answers end at their greatest length, as in transformers")
    bos = (composite or {}).get("bos_token_id") or getattr(config, "bos_token_id", None)
    values = {
        "token_rules": settings[0],
        "sequence_rules": settings[1],
        "pad_token_id": settings[0].get("pad_token_id"),
        "bos_token_id": bos,
    }
    try:
        tokens = SpecialTokens.read(values, config.vocab_size)
        search = read_search_settings(settings[0], config.vocab_size)
    except ValueError as error:
        raise FailedPreconditionError(f"{path}: {error}", field=str(path)) from error
    warnings += _unserved_fields(source)
    return Generation(search, tokens, tuple(dict.fromkeys(warnings)))


def _check_activation(path: Path, config: PreTrainedConfig) -> None:
    """Refuses an activation function that transformers does not know, or that has weights of its own.

    Raises:
        FailedPreconditionError: naming it.
    """
    name = getattr(config, "dense_act_fn", None) or getattr(config, "activation_function", None)
    if not isinstance(name, str) or name not in ACT2FN:
        raise FailedPreconditionError(
            f"{path}: the activation function {name!r} is none of {', '.join(ACT2FN)}", field=str(path)
        )
    if name in LEARNED:
        raise FailedPreconditionError(
            f"{path}: the activation function {name!r} has weights of its own, which ragserve does not serve; "
            "train the model with another one",
            field=str(path),
        )


def _check_padding(path: Path, config: PreTrainedConfig, section: str) -> None:
    """Refuses a padding token of the generator that has no row in its embedding.

    Raises:
        FailedPreconditionError: naming file and setting.
    """
    pad = getattr(config, "pad_token_id", None)
    if isinstance(pad, int) and pad >= config.vocab_size:
        raise FailedPreconditionError(
            f"{path}: {section}pad_token_id is {pad}; the vocabulary has the ids 0 to {config.vocab_size - 1}",
            field=str(path),
        )


def _from_model(config: Mapping[str, Any] | PreTrainedConfig) -> GenerationConfig:
    return GenerationConfig.from_model_config(copy.deepcopy(config))  # type: ignore[arg-type]


def _from_file(path: Path) -> GenerationConfig:
    found: GenerationConfig = GenerationConfig.from_dict(read_json(path))
    return found


def _read(path: Path, read: Callable[[], GenerationConfig]) -> GenerationConfig:
    """The result of `read`. Raises FailedPreconditionError in place of any error of transformers."""
    try:
        return read()
    except RagserveError:
        raise
    except Exception as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise FailedPreconditionError(
            f"{path}: transformers cannot use the generation settings: {reason}", field=str(path)
        ) from error


def _with_start(
    found: GenerationConfig, of_generator: GenerationConfig, name: str, warnings: list[str]
) -> dict[str, Any]:
    """Settings with a first token: the beginning-of-sequence token where there is no decoder start token.

    Where there is neither, transformers refuses to generate, and all special tokens are those of the model.
    """
    settings = {setting: getattr(found, setting, None) for setting in SERVED}
    if settings["decoder_start_token_id"] is None:
        settings["decoder_start_token_id"] = settings["bos_token_id"]
    if settings["decoder_start_token_id"] is None:
        special = ("decoder_start_token_id", "bos_token_id", "eos_token_id", "pad_token_id")
        of_model = {setting: getattr(of_generator, setting) for setting in special}
        if of_model["decoder_start_token_id"] is None:
            of_model["decoder_start_token_id"] = of_model["bos_token_id"]
        missing = {setting: value for setting, value in of_model.items() if settings[setting] is None}
        settings.update(missing)
        used = ", ".join(f"{setting} {value}" for setting, value in missing.items() if value is not None)
        warnings.append(f"{name} names no decoder_start_token_id: the model's special tokens are used ({used})")
    return settings


def _unserved(found: GenerationConfig, name: str) -> list[str]:
    values = {setting: getattr(found, setting, None) for setting in UNSERVED}
    return _reported(values, UNSERVED, name)


def _unserved_fields(source: Source) -> list[str]:
    """Warnings about fields of the composite and of the generator that are not served."""
    found = _reported(source.generator.config, MODEL_UNSERVED, MODEL_FILE)
    composite = source.composite or {}
    if composite.get("prefix") == source.generator.config.get("prefix"):
        composite = {**composite, "prefix": None}
    return _reported(composite, RAG_UNSERVED, MODEL_FILE) + found


def _reported(values: Mapping[str, Any], table: Mapping[str, Unserved], name: str) -> list[str]:
    return [
        f"{name} sets {setting} to {shown(values[setting])}, which is not served: {unserved.instead}"
        for setting, unserved in table.items()
        if unserved.matters(values.get(setting))
    ]


def _overridden(of_model: GenerationConfig, used: GenerationConfig, section: GenerationConfig | None) -> list[str]:
    """Warnings about settings of config.json that generation_config.json lacks, and that transformers ignores for it.

    `section` has the settings of a composite's generator, which RAG-Sequence reads.
    """
    everywhere, rules, search = list[str](), list[str](), list[str]()
    for setting in SERVED:
        value, of_section = getattr(of_model, setting, None), getattr(section, setting, None)
        silent = getattr(used, setting, None) is None
        if not silent or setting in ("bos_token_id", "pad_token_id"):
            continue
        if of_section is not None:
            (search if setting in SEARCH_SETTINGS else rules).append(f"{setting} {shown(of_section)}")
        elif value is not None:
            everywhere.append(f"{setting} {shown(value)}")
    warnings = []
    if everywhere:
        warnings.append(f"{MODEL_FILE} sets {', '.join(everywhere)}: ignored beside {OWN_FILE}, as in transformers")
    if rules:
        warnings.append(
            f"the generator section of {MODEL_FILE} sets {', '.join(rules)}: ignored in token mode beside {OWN_FILE}, "
            "used in sequence mode, as in transformers"
        )
    if search:
        warnings.append(
            f"the generator section of {MODEL_FILE} sets {', '.join(search)}: ignored in both modes, which search with "
            f"the settings of RAG-Token, those of {OWN_FILE}; RAG-Sequence of transformers uses those of the section"
        )
    return warnings
