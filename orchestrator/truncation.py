"""Says which passages the generator did not read to their end, or not with all their tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.requests import Evidence, Truncation
from ragserve.printable import counted

NAMED = 5  # passages with a warning of their own


@dataclass(frozen=True)
class ContextLength:
    """Tokens of one document's context as the generator reads it, those cut from it, and those of the document."""

    context_tokens: int
    truncated_tokens: int = 0
    document_tokens: int = 0  # title and text before they were cut; 0 where nothing was
    unknown_token: str = ""  # the first that was left out, as the model does not have it


@dataclass(frozen=True)
class Reading:
    """What the generator reads: the context of each document, and how many characters of the question it lacks."""

    lengths: tuple[ContextLength, ...] = ()
    question_characters: int = 0
    unknown_characters: int = 0  # of these, as the generator's vocabulary does not have them

    @property
    def question_warnings(self) -> tuple[str, ...]:
        """A sentence where characters of the question are unknown."""
        if not self.unknown_characters:
            return ()
        lacks = f"{self.unknown_characters} of the question's {counted(self.question_characters, 'character')}"
        return (
            f"The generator's vocabulary lacks {lacks}: the generator cannot read them. If it was not trained for the "
            "question's language, ask in another language.",
        )


def truncation_warnings(evidence: Evidence, lengths: Sequence[ContextLength], truncation: Truncation) -> list[str]:
    """One sentence for each passage that was cut, by falling prior; beyond the first few only their number."""
    cut = [(number, one) for number, one in enumerate(lengths) if one.truncated_tokens]
    named = [_warning(_name(evidence, number), one, truncation) for number, one in cut[:NAMED]]
    if len(cut) > NAMED:
        named.append(f"The generator read {counted(len(cut) - NAMED, 'more passage')} only in part.")
    return named


def unknown_warnings(evidence: Evidence, lengths: Sequence[ContextLength]) -> list[str]:
    """One sentence for each passage that the generator read without some token; as `truncation_warnings`."""
    found = [(number, one.unknown_token) for number, one in enumerate(lengths) if one.unknown_token]
    named = [
        f"The generator read {_name(evidence, number)} without {token!r}, a token that its tokenizer has and its model "
        "does not."
        for number, token in found[:NAMED]
    ]
    if len(found) > NAMED:
        named.append(f"The generator read {counted(len(found) - NAMED, 'more passage')} without such tokens.")
    return named


def _name(evidence: Evidence, number: int) -> str:
    passage = evidence.passages[number]
    if not evidence.numbers:
        return f"passage {passage.id!r}"
    return f"documents[{evidence.numbers[number]}]{f' ({passage.title!r})' if passage.title else ''}"


def _warning(name: str, one: ContextLength, truncation: Truncation) -> str:
    if truncation is Truncation.RIGHT:
        whole = one.context_tokens + one.truncated_tokens
        first = f"the first {one.context_tokens} of {whole} tokens"
        return f"The generator read only {first} of {name} and the question after it."
    read = one.document_tokens - one.truncated_tokens
    return f"The generator read only the first {read} of {one.document_tokens} tokens of {name}."
