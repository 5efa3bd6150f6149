"""Finds an answer's text in passages, compared as open-domain question answering does (SQuAD's normalization)."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")


def texts_with(answer: str, texts: Sequence[str]) -> tuple[int, ...]:
    """The indices of the texts that contain the answer as whole words.

    Case, accents, punctuation, articles and white space do not count. None contains an answer without a word.
    """
    patterns = [(_pattern(form), separator) for separator in ("", " ") if (form := normalized(answer, separator))]
    return tuple(
        index
        for index, text in enumerate(texts)
        if any(pattern.search(normalized(text, separator)) for pattern, separator in patterns)
    )


def normalized(text: str, separator: str = "") -> str:
    """The text without case, accents, articles and repeated white space; `separator` replaces punctuation.

    SQuAD drops punctuation, so that `U.S.` is `US`. A space for it finds `40` in `40-year-old`.
    """
    kept = []
    for character in unicodedata.normalize("NFKD", text).casefold():
        category = unicodedata.category(character)
        if category[0] in "PS":
            kept.append(separator)
        elif category != "Mn":
            kept.append(character)
    return " ".join(_ARTICLES.sub(" ", "".join(kept)).split())


def _pattern(words: str) -> re.Pattern[str]:
    """Matches whole words, but parts of a text in a script without spaces between words."""
    before = r"(?<!\w)" if _has_bounds(words[0]) else ""
    after = r"(?!\w)" if _has_bounds(words[-1]) else ""
    return re.compile(before + re.escape(words) + after)


def _has_bounds(character: str) -> bool:
    """Whether the character is a digit or a letter of an alphabet with capitals."""
    return character.isdigit() or character.upper() != character.lower()
