"""Removes spaces before punctuation from decoded text where a tokenizer's configuration says so, as in transformers."""

from __future__ import annotations

from typing import Any

REPLACED = (
    *((f" {sign}", sign) for sign in ".?!,"),
    *((" ' ", "'"), (" n't", "n't"), (" 'm", "'m"), (" 's", "'s"), (" 've", "'ve"), (" 're", "'re")),
)


def cleans_up(tokenizer: Any) -> bool:
    """Whether transformers cleans up what this tokenizer decodes: not of a BPE vocabulary, unless that is forced."""
    if not tokenizer.clean_up_tokenization_spaces:
        return False
    model = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
    forced: bool = tokenizer.clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output
    return forced or type(model).__name__ != "BPE"


def clean_up(text: str) -> str:
    """The text without spaces before punctuation and before the endings of English contractions."""
    for spaced, joined in REPLACED:
        text = text.replace(spaced, joined)
    return text
