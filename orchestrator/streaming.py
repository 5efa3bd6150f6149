"""Turns growing text into pieces that never have to be taken back."""

from __future__ import annotations

from orchestrator.requests import TokensFinal

# What a decoder writes for bytes that are not a whole character yet.
INCOMPLETE = "�"


class TextStream:
    """Remembers what was sent of one answer."""

    def __init__(self) -> None:
        self._tokens: tuple[int, ...] = ()
        self._text = ""

    def has_new(self, tokens: tuple[int, ...]) -> bool:
        """Whether there are final tokens that were not sent."""
        return len(tokens) > len(self._tokens)

    def advance(self, tokens: tuple[int, ...], text: str, *, last: bool = False) -> TokensFinal:
        """The event for the final tokens and their text.

        Text that does not continue what was sent, or ends inside a character, waits for the next event.
        """
        new, self._tokens = tokens[len(self._tokens) :], tokens
        if not last:
            text = text.rstrip(INCOMPLETE)
        if not text.startswith(self._text):
            return TokensFinal(new, "")
        added, self._text = text[len(self._text) :], text
        return TokensFinal(new, added)
