"""Why a search found nothing, and what the caller can do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from ragserve.arguments import shown

NAMED_KEYS = 20  # of the metadata, in an error
NOT_METADATA = ("id", "title", "text")


class NothingFound(StrEnum):
    """Why a query has no passages."""

    FILTER = "filter"  # no passage matches the filter
    NO_WORDS = "no_words"  # the query has no word that BM25 searches for
    WORDS = "words"  # no passage contains a word of the query
    WORDS_AND_FILTER = "words_and_filter"  # of the passages that match the filter, none contains a word of the query


@dataclass(frozen=True)
class FilterKeys:
    """Keys of a filter that no passage has a value for, and the keys that passages have, the most frequent first.

    `known` has at most NAMED_KEYS + 1 keys. The last of that many only says that there are more. `nested`: those of
    `unknown` that have lists or objects. `numbers`: keys whose values are all numbers, with a text as a bound.
    """

    unknown: tuple[str, ...] = ()
    known: tuple[str, ...] = ()
    nested: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()

    def sentences(self) -> str:
        """What is wrong with keys and bounds of the filter, and what can be filtered by; empty where nothing is."""
        if self.numbers:
            values = f"but all values of {_listed(self.numbers, 'and')} are numbers"
            return f"A bound is a text, {values}. Write a number with a decimal point, such as 0.5."
        if not self.unknown:
            return ""
        said = f"None has a text, number or boolean under the metadata key {_listed(self.unknown, 'or')}."
        if self.nested:
            said += f" Lists and objects, as those of {_listed(self.nested, 'and')}, cannot be filtered."
        if parts := [key for key in self.unknown if key in NOT_METADATA]:
            said += f" Only metadata can be filtered, not {' or '.join(parts)}."
        if not self.known:
            return f"{said} The passages have no metadata that can be filtered."
        keys = _listed(self.known[:NAMED_KEYS], "and" if len(self.known) <= NAMED_KEYS else "")
        more = " and more" if len(self.known) > NAMED_KEYS else ""
        return f"{said} The metadata keys there are: {keys}{more}."


NO_KEYS = FilterKeys()


@dataclass(frozen=True)
class Names:
    """What the caller knows question, filter and kind of search by."""

    question: str
    filter: str
    kind: str

    def blamed(self, reason: NothingFound) -> str:
        """The one that an empty result is about."""
        match reason:
            case NothingFound.FILTER | NothingFound.WORDS_AND_FILTER:
                return self.filter
            case NothingFound.NO_WORDS:
                return self.question
            case NothingFound.WORDS:
                return self.kind


def _listed(keys: Iterable[str], joint: str) -> str:
    *first, last = map(shown, keys)
    return f"{', '.join(first)} {joint} {last}" if first and joint else ", ".join([*first, last])


def explanation(
    reason: NothingFound,
    version: int,
    filter_name: str = "filter",
    kind_name: str = "search_kind",
    keys: FilterKeys = NO_KEYS,
) -> str:
    """The reason, and what to do. The names are those that the caller knows filter and kind of search by."""
    passage = f"No passage of knowledge version {version}"
    dense = f"set {kind_name} to dense, which needs no common word"
    match reason:
        case NothingFound.FILTER:
            return f"{passage} matches {filter_name}. {keys.sentences() or 'Remove a condition.'}"
        case NothingFound.NO_WORDS:
            return (
                "The question has no word that BM25 searches for, only signs or words such as 'the'. Ask with other "
                f"words, or {dense}."
            )
        case NothingFound.WORDS:
            return f"{passage} contains a word of the question. Ask with other words, or {dense}."
        case NothingFound.WORDS_AND_FILTER:
            return (
                f"{passage} that matches {filter_name} contains a word of the question. Remove a condition, ask with "
                f"other words, or {dense}."
            )
