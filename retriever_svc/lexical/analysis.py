"""From text to the terms that BM25 counts: the same for passages and questions.

Every character is decomposed (NFKD), loses its accents and its case; letters and digits make terms, apostrophes vanish
(Shakespeare's becomes shakespeares), anything else separates. Scripts without spaces are not split into words. Stop
words are dropped, and plurals lose their s.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

# Lucene's English stop words, which bm25s leaves out too.
STOP_WORDS = frozenset(
    """
    a an and are as at be but by for if in into is it no not of on or such that the their then there these they this to
    was will with
    """.split()  # noqa: SIM905
)
APOSTROPHES = frozenset("'’ʼ")
LETTERS_AND_DIGITS = frozenset("LN")  # first letters of Unicode's general categories
MARKS = "M"


class _Folding(dict[int, str]):
    """What each character becomes, looked up once: folded, nothing, or a space."""

    def __missing__(self, code: int) -> str:
        self[code] = folded = _fold(chr(code))
        return folded


def _fold(character: str) -> str:
    if character in APOSTROPHES:
        return ""
    kept = ""
    for part in unicodedata.normalize("NFKD", character):
        category = unicodedata.category(part)[0]
        if category in LETTERS_AND_DIGITS:
            kept += part.casefold()
        elif category != MARKS:
            kept += " "
    return kept


_folding = _Folding()


def words_of(text: str) -> list[str]:
    """The folded words of a text, stop words included."""
    return text.translate(_folding).split()


def stem(word: str) -> str:
    """A word without the s of its plural (Harman's S-stemmer: How effective is suffixing?, JASIS 1991)."""
    if len(word) < 4 or word[-1] != "s":
        return word
    if word.endswith("ies") and word[-4] not in "ae":
        return f"{word[:-3]}y"
    if word.endswith("es") and word[-3] not in "aeo":
        return word[:-1]
    return word if word[-2] in "us" or word.endswith("es") else word[:-1]


def term_of(word: str) -> str | None:
    """The term that a word counts as, or None for a stop word."""
    return None if word in STOP_WORDS else stem(word)


def terms_of(words: Iterable[str]) -> list[str]:
    """The terms of words, in order."""
    return [term for term in map(term_of, words) if term is not None]
