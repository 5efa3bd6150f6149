"""The role of filters: what a hypothesis may not take next, and how its scores change.

Each is one of Hugging Face's logits processors (`transformers/generation/logits_process.py`), in the order in which
`generate` applies them. A prefix is what they see as `input_ids`: the decoder start token, then the tokens so far.
A filter that changes the score of a token must request that token, so that its exact log-probability is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from orchestrator.search.inference import Control, Floats, Ids

Prefix = tuple[int, ...]

FREE = Control()
LARGEST_GROWTH = 1e30  # a factor by which float32 scores stay finite


class Filter:
    """Does nothing; a filter overrides what it is about."""

    def banned(self, prefix: Prefix) -> set[int]:
        """Tokens that may not come next."""
        return set()

    def requested(self, prefix: Prefix) -> set[int]:
        """Tokens whose scores `rescore` changes."""
        return set()

    def rescore(self, prefix: Prefix, ids: Ids, scores: Floats) -> Floats:
        """Changed log-probabilities `[n]` of tokens `ids` `[n]`."""
        return scores

    def forced(self, prefix: Prefix) -> tuple[int, ...] | None:
        """The only tokens that may come next, at no cost, or None."""
        return None


@dataclass(frozen=True)
class RepetitionPenalty(Filter):
    """Log-probabilities of tokens already there are multiplied by the penalty (divided where positive)."""

    penalty: float

    def requested(self, prefix: Prefix) -> set[int]:
        """Every token of the prefix, the decoder start token included."""
        return set(prefix)

    def rescore(self, prefix: Prefix, ids: Ids, scores: Floats) -> Floats:
        """Float32 throughout, as the tensors there."""
        penalty = np.float32(self.penalty)
        seen = np.isin(ids, list(set(prefix)))
        return np.where(seen, np.where(scores < 0, scores * penalty, scores / penalty), scores)


@dataclass(frozen=True)
class NoRepeatNgram(Filter):
    """No n-gram of this size occurs twice."""

    size: int

    def banned(self, prefix: Prefix) -> set[int]:
        """The last tokens of earlier n-grams that begin as the prefix ends."""
        head = self.size - 1
        ending = prefix[len(prefix) - head :]
        starts = range(len(prefix) - head)
        return {prefix[i + head] for i in starts if prefix[i : i + head] == ending}


@dataclass(frozen=True)
class BadWords(Filter):
    """Sequences that may not be generated; an end token alone is not forbidden."""

    sequences: tuple[tuple[int, ...], ...]
    eos_ids: tuple[int, ...]

    def banned(self, prefix: Prefix) -> set[int]:
        """The last tokens of the sequences whose other tokens end the prefix."""
        return {
            words[-1]
            for words in self.sequences
            if not (len(words) == 1 and words[0] in self.eos_ids)
            and len(words) <= len(prefix) + 1
            and prefix[len(prefix) - len(words) + 1 :] == words[:-1]
        }


@dataclass(frozen=True)
class MinLength(Filter):
    """No end token before the sequence, decoder start token included, has this length."""

    min_length: int
    eos_ids: tuple[int, ...]

    def banned(self, prefix: Prefix) -> set[int]:
        """The end tokens, while the prefix is too short."""
        return set(self.eos_ids) if len(prefix) < self.min_length else set()


@dataclass(frozen=True)
class MinNewTokens(Filter):
    """No end token before this many tokens are generated."""

    min_new_tokens: int
    eos_ids: tuple[int, ...]

    def banned(self, prefix: Prefix) -> set[int]:
        """The end tokens, while too few are generated."""
        return set(self.eos_ids) if len(prefix) - 1 < self.min_new_tokens else set()


@dataclass(frozen=True)
class ForcedBos(Filter):
    """The first token generated."""

    token: int

    def forced(self, prefix: Prefix) -> tuple[int, ...] | None:
        """The token, after the decoder start token."""
        return (self.token,) if len(prefix) == 1 else None


@dataclass(frozen=True)
class ForcedEos(Filter):
    """The tokens of which one is taken at the last position."""

    tokens: tuple[int, ...]
    max_length: int

    def forced(self, prefix: Prefix) -> tuple[int, ...] | None:
        """The tokens, one before the maximum length."""
        return self.tokens if len(prefix) == self.max_length - 1 else None


@dataclass(frozen=True)
class ExponentialDecay(Filter):
    """After `start` generated tokens, every further one raises the scores of the end tokens."""

    start: int
    factor: float
    eos_ids: tuple[int, ...]

    def requested(self, prefix: Prefix) -> set[int]:
        """The end tokens, once their scores change."""
        return set(self.eos_ids) if self._past(prefix) > 0 else set()

    def rescore(self, prefix: Prefix, ids: Ids, scores: Floats) -> Floats:
        """A score s becomes s + |s| (factor^n - 1), n being the number of tokens after `start`."""
        past = self._past(prefix)
        if past <= 0:
            return scores
        with np.errstate(over="ignore"):
            growth = np.clip(np.power(np.float64(self.factor), past) - 1.0, -LARGEST_GROWTH, LARGEST_GROWTH)
        grown = np.isin(ids, self.eos_ids) & np.isfinite(scores)
        return np.where(grown, scores + np.abs(scores) * np.float32(growth), scores)

    def _past(self, prefix: Prefix) -> int:
        return len(prefix) - 1 - self.start


@dataclass(frozen=True)
class Suppress(Filter):
    """Tokens that are never generated."""

    tokens: tuple[int, ...]

    def banned(self, prefix: Prefix) -> set[int]:
        """The tokens."""
        return set(self.tokens)


@dataclass(frozen=True)
class SuppressAtBegin(Filter):
    """Tokens that are not generated at one position: the first, or the one after a forced first token."""

    tokens: tuple[int, ...]
    begin: int  # length of the prefix, decoder start token included

    def banned(self, prefix: Prefix) -> set[int]:
        """The tokens, at that position."""
        return set(self.tokens) if len(prefix) == self.begin else set()


@dataclass(frozen=True)
class FilterChain:
    """Filters in their order, for a model whose decoder starts with `start`."""

    start: int
    filters: Sequence[Filter]

    @cached_property
    def rescores(self) -> bool:
        """Whether any of them changes scores."""
        return bool(self._with("rescore"))

    def control(self, tokens: tuple[int, ...]) -> Control:
        """What the step after these generated tokens may choose, and must show.

        Later filters win, as in Hugging Face's order: a forced token over an earlier one and over earlier bans, a ban
        over an earlier forced token.
        """
        prefix = (self.start, *tokens)
        for one in self._forcing:
            forced = one.forced(prefix)
            if forced is not None:
                later = self.filters[self.filters.index(one) + 1 :]
                left = set(forced).difference(*(after.banned(prefix) for after in later))
                allowed = tuple(sorted(left))
                return Control(requested=allowed, forced=allowed)
        banned, requested = set[int](), set[int]()
        for one in self._banning:
            banned |= one.banned(prefix)
        for one in self._requesting:
            requested |= one.requested(prefix)
        if not banned and not requested:
            return FREE
        return Control(banned=tuple(sorted(banned)), requested=tuple(sorted(requested - banned)))

    def rescore(self, tokens: tuple[int, ...], ids: Ids, scores: Floats) -> Floats:
        """Log-probabilities `[n]` of tokens `ids` after all filters."""
        prefix = (self.start, *tokens)
        for one in self.filters:
            scores = one.rescore(prefix, ids, scores)
        return scores

    @cached_property
    def _forcing(self) -> Sequence[Filter]:
        return self._with("forced")[::-1]

    @cached_property
    def _banning(self) -> Sequence[Filter]:
        return self._with("banned")

    @cached_property
    def _requesting(self) -> Sequence[Filter]:
        return self._with("requested")

    def _with(self, method: str) -> Sequence[Filter]:
        """Those that do something there: none is asked in vain at every step of every hypothesis."""
        return [one for one in self.filters if getattr(type(one), method) is not getattr(Filter, method)]
