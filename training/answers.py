"""Comparing answers as the open-domain QA literature does (SQuAD's normalization, exact match over all aliases)."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterable

PUNCTUATION = frozenset(string.punctuation)


def normalize(text: str) -> str:
    """Lower case, without punctuation, articles and repeated white space."""
    lowered = unicodedata.normalize("NFD", text).lower()
    kept = "".join(character for character in lowered if character not in PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())


def exact_match(prediction: str, answers: Iterable[str]) -> bool:
    """Whether the prediction is one of the answers, both normalized."""
    return normalize(prediction) in {normalize(answer) for answer in answers}


def contains_answer(normalized_text: str, answers: Iterable[str]) -> bool:
    """Whether any answer stands in a normalized text as whole words."""
    padded = f" {normalized_text} "
    return any(f" {answer} " in padded for answer in map(normalize, answers) if answer)


def surface_form(answers: Iterable[str], texts: Iterable[str]) -> str | None:
    """The fullest answer that stands in one of the texts, spelt as it is there: `J. R. R. Tolkien`, not `Tolkien`."""
    places = list(texts)
    spellings = {alias.strip().strip('"') for alias in answers}
    for answer in sorted(spellings, key=lambda spelling: (-len(spelling), spelling)):
        for text in places if normalize(answer) else ():
            found = re.search(rf"(?<!\w){re.escape(answer)}(?!\w)", text, re.IGNORECASE)
            if found:
                return found.group(0)
    return None
