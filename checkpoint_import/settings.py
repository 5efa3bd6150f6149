"""What a checkpoint says about building contexts and generating, in its several configuration files."""

from __future__ import annotations

from typing import Any

from checkpoint_import.recognize import read_json
from checkpoint_import.source import Source
from ragserve.checkpoint import RagSettings

SEARCH_KEYS = (
    *("num_beams", "max_length", "min_length", "max_new_tokens", "min_new_tokens", "length_penalty"),
    *("early_stopping", "no_repeat_ngram_size", "repetition_penalty", "bad_words_ids"),
)
FORCED_KEYS = ("forced_bos_token_id", "forced_eos_token_id")


def rag_settings(source: Source) -> RagSettings:
    """How contexts are built: from the composite's configuration, with the prefix of the generator's.

    Hugging Face reads the prefix from the generator's configuration only (`RagTokenForGeneration.generate`).
    """
    top, defaults = source.composite or {}, RagSettings()
    return RagSettings(
        n_docs=int(_first(top.get("n_docs"), defaults.n_docs)),
        max_combined_length=int(_first(top.get("max_combined_length"), defaults.max_combined_length)),
        prefix=str(_first(source.generator.config.get("prefix"), top.get("prefix"), defaults.prefix)),
        title_sep=str(_first(top.get("title_sep"), defaults.title_sep)),
        doc_sep=str(_first(top.get("doc_sep"), defaults.doc_sep)),
    )


def generation_defaults(source: Source) -> dict[str, Any]:
    """Generation parameters by their Hugging Face names.

    A composite's own settings count, as transformers 4 honoured them: its generation_config.json, then the top level of
    its config.json. The generator's section gives only the forced tokens: there a search setting is a leftover of the
    checkpoint the generator started from. A pair has the generator's settings.
    """
    directory = source.composite_directory or source.generator.directory
    own = directory / "generation_config.json"
    layers = [read_json(own)] if own.is_file() else []
    layers.append(source.composite if source.composite is not None else source.generator.config)
    found: dict[str, Any] = {}
    for key in (*SEARCH_KEYS, *FORCED_KEYS):
        places = [*layers, source.generator.config] if key in FORCED_KEYS else layers
        value = _first(*(place.get(key) for place in places))
        if value is not None:
            found[key] = value
    return found


def _first(*values: Any) -> Any:
    """The first value that is set."""
    return next((value for value in values if value is not None), None)
