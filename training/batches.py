"""Token ids of contexts and targets, and batches of like length."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from training.corpus import Summary

QUESTION_TOKENS = 96
TARGET_TOKENS = 20
IGNORED = -100
BUCKET = 16  # batches that are sorted by length together
T = TypeVar("T")


@dataclass(frozen=True)
class Tensors:
    """One forward pass: rows of contexts with their targets.

    input_ids, attention_mask [n_rows, n_context]; decoder_input_ids, targets, mask [n_rows, n_tokens].
    """

    input_ids: Tensor
    attention_mask: Tensor
    decoder_input_ids: Tensor
    targets: Tensor
    mask: Tensor


class Texts:
    """Contexts and targets as the generator service builds them: title / passage // question, end token."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, corpus: list[Summary]) -> None:
        self._tokenizer = tokenizer
        self._corpus = corpus
        self._end = int(tokenizer.eos_token_id)

    def context(self, question: str, passage: int, max_tokens: int) -> list[int]:
        """Ids of one context; a passage that is too long is cut, the question stays."""
        summary = self._corpus[passage]
        return self.raw_context(f"{summary.title} / {summary.text}", question, max_tokens)

    def raw_context(self, passage: str, question: str, max_tokens: int) -> list[int]:
        """The same for any passage text."""
        asked = self._ids(f" // {question}")[:QUESTION_TOKENS]
        room = max_tokens - len(asked) - 1
        return self._ids(passage.replace("  ", " "))[:room] + asked + [self._end]

    def target(self, answer: str) -> list[int]:
        """Ids of an answer."""
        return [*self._ids(answer)[:TARGET_TOKENS], self._end]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


def pad(rows: list[list[int]], value: int) -> Tensor:
    """Rows of ids as one tensor [n_rows, longest]."""
    longest = max(map(len, rows))
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])


def tensors(contexts: list[list[int]], targets: list[list[int]], pad_id: int, start_id: int) -> Tensors:
    """Inputs of a teacher-forced pass; the decoder is fed the start token, then all targets but the last."""
    input_ids, padded = pad(contexts, pad_id), pad(targets, IGNORED)
    mask = padded != IGNORED
    filled = padded.masked_fill(~mask, pad_id)
    start = torch.full((len(targets), 1), start_id)
    return Tensors(input_ids, (input_ids != pad_id).long(), torch.cat([start, filled[:, :-1]], 1), filled, mask)


def length_batches(examples: list[T], length: Callable[[T], int], size: int, rng: random.Random) -> Iterator[list[T]]:
    """Shuffled batches of `size` examples of like length."""
    shuffled = examples[:]
    rng.shuffle(shuffled)
    for start in range(0, len(shuffled), size * BUCKET):
        bucket = sorted(shuffled[start : start + size * BUCKET], key=length)
        batches = [bucket[first : first + size] for first in range(0, len(bucket), size)]
        rng.shuffle(batches)
        yield from batches


def token_chunks(rows: list[T], length: Callable[[T], int], budget: int) -> Iterator[list[T]]:
    """Split rows in order so that rows times the longest stays within a budget of tokens."""
    chunk: list[T] = []
    longest = 0
    for row in rows:
        longest = max(longest, length(row))
        if chunk and longest * (len(chunk) + 1) > budget:
            yield chunk
            chunk, longest = [], length(row)
        chunk.append(row)
    if chunk:
        yield chunk
