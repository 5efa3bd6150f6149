"""Which tokens begin, end and shape an answer: as the manifest of a model has them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ragserve.arguments import shown

LARGEST_ID = 2**31 - 1  # token ids are int32 in the generator
LARGEST_DECAY_START = 2**31 - 1  # tokens
LISTS = ("eos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens")


@dataclass(frozen=True)
class TokenRules:
    """The rules of one mode, by their Hugging Face names.

    `exponential_decay_length_penalty` is (start, factor): from `start` generated tokens on, the score of every end
    token grows with each token.
    """

    decoder_start_token_id: int
    eos_token_id: tuple[int, ...]
    forced_bos_token_id: int | None = None
    forced_eos_token_id: tuple[int, ...] = ()
    suppress_tokens: tuple[int, ...] = ()
    begin_suppress_tokens: tuple[int, ...] = ()
    exponential_decay_length_penalty: tuple[int, float] | None = None

    @classmethod
    def read(cls, settings: Mapping[str, Any], vocab_size: int) -> TokenRules:
        """From settings by their Hugging Face names; one id may stand for a list of one.

        Negative ids in lists never occur in an answer and are left out, as are suppressed ids beyond the vocabulary.

        Raises:
            ValueError: a value has the wrong type, or is no token of the vocabulary; or a step of a search would have
                no token left. The message names the setting.
        """
        start = _id("decoder_start_token_id", settings.get("decoder_start_token_id"), vocab_size)
        if start is None:
            raise ValueError("there is no decoder_start_token_id")
        lists = {name: _ids(name, settings.get(name)) for name in LISTS}
        for name in ("eos_token_id", "forced_eos_token_id"):
            for token in lists[name]:
                _id(name, token, vocab_size)
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            lists[name] = tuple(token for token in lists[name] if token < vocab_size)
        rules = cls(
            decoder_start_token_id=start,
            forced_bos_token_id=_id("forced_bos_token_id", settings.get("forced_bos_token_id"), vocab_size),
            exponential_decay_length_penalty=_decay(settings.get("exponential_decay_length_penalty")),
            **lists,
        )
        _check_suppressed(rules, vocab_size)
        return rules


@dataclass(frozen=True)
class SpecialTokens:
    """The rules of both modes, and the tokens that both share.

    In sequence mode the score of a leading `bos_token_id` does not count (`exclude_bos_score`).
    """

    token_rules: TokenRules
    sequence_rules: TokenRules
    pad_token_id: int
    bos_token_id: int | None

    def rules(self, mode: str) -> TokenRules:
        """Those of a mode, "token" or "sequence"."""
        return self.sequence_rules if mode == "sequence" else self.token_rules

    @classmethod
    def read(cls, settings: Mapping[str, Any], vocab_size: int = LARGEST_ID) -> SpecialTokens:
        """From the manifest, or from settings by their Hugging Face names that hold for both modes.

        Without a padding token the first end token pads, as in Hugging Face.

        Raises:
            ValueError: a value has the wrong type, or is no token of the vocabulary. The message names the setting.
        """
        of_mode = [settings.get(name, settings) for name in ("token_rules", "sequence_rules")]
        if not all(isinstance(one, Mapping) for one in of_mode):
            raise ValueError("token_rules and sequence_rules must be objects")
        token, sequence = (TokenRules.read(one, vocab_size) for one in of_mode)
        first = token.eos_token_id[0] if token.eos_token_id else token.decoder_start_token_id
        pad = settings.get("pad_token_id")
        pad = first if isinstance(pad, int) and pad < 0 else _id("pad_token_id", pad, vocab_size)
        bos = _id("bos_token_id", settings.get("bos_token_id"), vocab_size)
        return cls(token, sequence, first if pad is None else pad, bos)

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return asdict(self)


def _id(name: str, value: Any, vocab_size: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} is {shown(value)}, which is no token id")  # noqa: TRY004
    if not 0 <= value < min(vocab_size, LARGEST_ID):
        raise ValueError(f"{name} is {value}; the vocabulary has the ids 0 to {vocab_size - 1}")
    return value


def _ids(name: str, value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    ids = value if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if any(isinstance(token, bool) or not isinstance(token, int) for token in ids):
        raise ValueError(f"{name} is {shown(value)}; expected a token id or a list of them")
    return tuple(token for token in ids if token >= 0)


def _check_suppressed(rules: TokenRules, vocab_size: int) -> None:
    """Raises ValueError where every token of a step is suppressed."""
    suppressed = set(rules.suppress_tokens)
    for name, at_begin in (
        ("suppress_tokens", set[int]()),
        ("begin_suppress_tokens", set(rules.begin_suppress_tokens)),
    ):
        if len(suppressed | at_begin) >= vocab_size:
            raise ValueError(f"{name} leaves no token of the vocabulary, which has {vocab_size}")
    first = () if rules.forced_bos_token_id is None else (rules.forced_bos_token_id,)
    for name, forced in (("forced_bos_token_id", first), ("forced_eos_token_id", rules.forced_eos_token_id)):
        if forced and suppressed.issuperset(forced):
            raise ValueError(f"suppress_tokens holds {shown([*forced])}, all of {name}: no token is left to force")


def _decay(value: Any) -> tuple[int, float] | None:
    name = "exponential_decay_length_penalty"
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise ValueError(f"{name} is {shown(value)}; expected a start in tokens and a factor")
    start, factor = value
    numbers = not isinstance(start, bool) and isinstance(start, int)
    numbers = numbers and not isinstance(factor, bool) and isinstance(factor, int | float)
    if not numbers or not 0 <= start <= LARGEST_DECAY_START or not abs(factor) <= LARGEST_ID or math.isnan(factor):
        raise ValueError(f"{name} is {shown(value)}; expected a start of 0 or more tokens and a finite factor")
    return start, float(factor)
