"""Guesses what comes next by looking the last tokens up in the documents (prompt lookup, speculative decoding).

A guess is verified like any hypothesis: its rows are in the step that follows, and the client's choices say how much of
it they agree with. What is generated does not depend on it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import cached_property
from itertools import takewhile

LONGEST_MATCH = 3  # tokens compared; more hardly ever decide
GROWTH, SHRINKAGE = 2, 1  # of the next guess, after one that was right to its end and one that was not


class Drafter:
    """The guesses of one session in token mode with one hypothesis.

    `contexts` are the token ids of its documents, the likeliest first; what is in `never` ends a guess.
    """

    def __init__(
        self, contexts: Sequence[Sequence[int]], start: Sequence[int], max_tokens: int, never: Collection[int | None]
    ) -> None:
        self._contexts = contexts
        self._never = frozenset(never)
        self._path = list(start)  # what is given, then what was guessed
        self._n_given = len(self._path)
        self._max_tokens = self._length = max_tokens

    def propose(self, parent: int, token: int, most: int) -> tuple[int, ...]:
        """At most `most` tokens after `token`, which extends the hypothesis `parent`: 0, or one that was guessed."""
        path = [*self._path[: self._n_given + parent], token]
        places = self._places.get(token, ())
        if not places or token in self._never:
            return ()
        best = max(places, key=lambda place: (self._matching(path, place), -place))
        guess = self._flat[best + 1 : best + 1 + min(most, self._length)]
        return tuple(takewhile(lambda one: one not in self._never, guess))

    def take(self, parent: int, token: int, drafted: Sequence[int]) -> None:
        """The hypothesis `parent` was extended by `token`, and `drafted` follow it as guesses."""
        guessed = len(self._path) - self._n_given
        if guessed:
            longer = self._length + GROWTH if parent == guessed else self._length - SHRINKAGE
            self._length = min(max(longer, 1), self._max_tokens)
        del self._path[self._n_given + parent :]
        self._path.append(token)
        self._n_given = len(self._path)
        self._path += drafted

    @cached_property
    def _flat(self) -> list[int]:
        return [token for context in self._contexts for token in context]

    @cached_property
    def _places(self) -> dict[int, list[int]]:
        """Where each token stands."""
        places: dict[int, list[int]] = {}
        for place, token in enumerate(self._flat):
            places.setdefault(token, []).append(place)
        return places

    def _matching(self, path: Sequence[int], place: int) -> int:
        """How many tokens before a place, it included, are those that `path` ends with."""
        longest = min(LONGEST_MATCH, len(path), place + 1)
        return next((n for n in range(longest) if self._flat[place - n] != path[-1 - n]), longest)
