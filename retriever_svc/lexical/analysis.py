"""From text to the terms that BM25 counts: the same for passages and questions.

Every character is decomposed (NFKD), loses its accents and its case; letters and digits make terms, apostrophes vanish
(Shakespeare's becomes shakespeares), anything else separates. Runs of scripts that write no spaces are split into words
by ICU. A word of three or more Han characters adds its pairs of characters, so that a part finds the whole. Stop words
are dropped, and plurals lose their s.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator

# Lucene's English stop words, which bm25s leaves out too.
STOP_WORDS = frozenset(
    """
    a an and are as at be but by for if in into is it no not of on or such that the their then there these they this to
    was will with
    """.split()  # noqa: SIM905
)
VANISHING = frozenset("'’ʼ\u00ad")  # apostrophes, and the hyphen that shows only at the end of a line
LETTERS_AND_DIGITS = frozenset("LN")  # first letters of Unicode's general categories
MARKS = frozenset(("Mn", "Mc"))
# Canonical combining classes of the marks that are vowels, viramas or tones, as in India's scripts and in Thai. Marks
# of other classes are accents, and points of Hebrew and Arabic.
KEPT_CLASSES = frozenset((0, 7, 8, 9, 84, 91, 103, 107, 118, 122, 129, 130, 132))
SELECTORS = re.compile("[\u034f\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")  # marks that choose a glyph
DOTLESS = {"ı": "i"}  # Turkish writes Isparta and ısparta; the dotted İ loses its dot as an accent

# Thai, Lao, Myanmar, Khmer, Han and kana.
UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\ua9e0-\ua9ff\uaa60-\uaa7f"
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u303b\u3041-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9f\U0001b000-\U0001b16f\U00020000-\U000323af"
)
_UNSPACED = re.compile(f"[{UNSPACED}]")
_FROM_THAI = re.compile("[\u0e00-\U0010ffff]")  # one range, so that it is found fast that nothing is there
_COMPOUND = re.compile("[\u3005\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U000323af]{3,}")
_RUNS = re.compile(f"[{UNSPACED}]+|[^{UNSPACED}]+")
# Thai and Lao am, which Unicode's compatible forms take apart and ICU's dictionaries hold in one piece.
AM = {"\u0e4d\u0e32": "\u0e33", "\u0ecd\u0eb2": "\u0eb3"}
LONG_VOWEL = "ー"


class _Folding(dict[int, str]):
    """What each character becomes, looked up once: folded, nothing, or a space."""

    def __missing__(self, code: int) -> str:
        self[code] = folded = _fold(chr(code))
        return folded


def _fold(character: str) -> str:
    if character in VANISHING:
        return ""
    if _UNSPACED.match(character):
        return _fold_unspaced(character)
    kept = ""
    for part in unicodedata.normalize("NFKD", character):
        category = unicodedata.category(part)
        if category[0] in LETTERS_AND_DIGITS:
            kept += DOTLESS.get(part, part.casefold())
        elif category in MARKS and unicodedata.combining(part) in KEPT_CLASSES and not SELECTORS.match(part):
            kept += part
        elif category[0] != "M":
            kept += " "
    return kept


def _fold_unspaced(character: str) -> str:
    """As ICU's dictionaries have it: composed, at full width; digits are those of all scripts."""
    whole = character if character in AM.values() else unicodedata.normalize("NFKC", character)
    category = unicodedata.category(whole[0])
    if category == "Nd":
        return str(unicodedata.digit(character))
    return whole if category[0] in LETTERS_AND_DIGITS or category in MARKS else " "


_folding = _Folding()


def words_of(text: str) -> list[str]:
    """The folded words of a text, stop words included."""
    folded = text.translate(_folding)
    if folded.isascii() or not (_FROM_THAI.search(folded) and _UNSPACED.search(folded)):
        return folded.split()
    return list(_words_without_spaces(folded))


def _words_without_spaces(folded: str) -> Iterator[str]:
    """The words of a folded text, where runs of some scripts have no spaces between theirs."""
    from icu4py.breakers import WordBreaker  # noqa: PLC0415  (its data takes memory that other texts need not)

    runs = [run for word in folded.split() for run in _RUNS.findall(word)]
    unspaced = [_composed(run) for run in runs if _UNSPACED.match(run)]
    words: list[list[str]] = [[]]
    for segment in WordBreaker("\n".join(unspaced), "root"):  # once for all, for making one takes its time
        word = str(segment)
        if word == "\n":
            words.append([])
            continue
        words[-1].append(word.removesuffix(LONG_VOWEL) if len(word) > 3 else word)
        if _COMPOUND.fullmatch(word):
            words[-1] += [word[start : start + 2] for start in range(len(word) - 1)]
    found = iter(words)
    for run in runs:
        if _UNSPACED.match(run):
            yield from next(found)
        else:
            yield run


def _composed(run: str) -> str:
    for apart, whole in AM.items():
        run = run.replace(apart, whole)
    return unicodedata.normalize("NFC", run)


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
