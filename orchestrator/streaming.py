"""Turns growing text into pieces that never have to be taken back."""

from __future__ import annotations

import re

from orchestrator.requests import TokensFinal

# What a decoder writes for bytes that are not a whole character yet.
INCOMPLETE = "�"
# An end of a text before which a space goes where more follows: a generator may clean its texts up
# (`ragserve.clean_up`).
MAY_CHANGE = re.compile(r"(?: n ?'? ?| ?' ?[vr]?| )$")


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

        Text that does not continue what was sent, or that the next token may change, waits for the next event.
        """
        new, self._tokens = tokens[len(self._tokens) :], tokens
        if not last:
            text = MAY_CHANGE.sub("", text.rstrip(INCOMPLETE))
        if not text.startswith(self._text):
            return TokensFinal(new, "")
        added, self._text = text[len(self._text) :], text
        return TokensFinal(new, added)
