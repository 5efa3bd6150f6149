"""The generator's tokenizer: contexts and targets to ids, ids to text and to the piece each token adds."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from generator_svc.commands import RenderedSequence
from ragserve.checkpoint import IMPORT_AGAIN
from ragserve.clean_up import clean_up, cleans_up
from ragserve.errors import FailedPreconditionError
from ragserve.files import exists, require_file
from ragserve.reasons import reason_of

TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "vocab.json", "sentencepiece.bpe.model")
REPLACEMENT = "\ufffd"  # what an incomplete UTF-8 sequence decodes to


class Codec:
    """A Hugging Face tokenizer behind a lock: its truncation state is shared and mutable."""

    def __init__(self, tokenizer: Any, vocab_size: int | None = None) -> None:
        """`vocab_size` is how many tokens the model knows; None: all of the tokenizer's."""
        self._tokenizer = tokenizer
        vocabulary = {} if vocab_size is None else tokenizer.get_vocab()
        self._unknown = {row: token for token, row in vocabulary.items() if row >= (vocab_size or 0)}
        self._lock = threading.Lock()
        added = tokenizer.added_tokens_decoder.items()
        self._special = {token_id for token_id, token in added if token.special} | set(tokenizer.all_special_ids)
        self._cleans_up = cleans_up(tokenizer)

    def encode(self, text: str) -> list[int]:
        """Ids with the tokenizer's special tokens, however long."""
        with self._lock:
            ids: list[int] = self._tokenizer(text, truncation=False, verbose=False)["input_ids"]
        return ids

    def encode_target(self, text: str) -> list[int]:
        """Ids of a target, with special tokens."""
        with self._lock:
            ids: list[int] = self._tokenizer(text_target=text, truncation=False, verbose=False)["input_ids"]
        return ids

    def encode_truncated(self, text: str, max_tokens: int) -> list[int]:
        """Ids cut from the right, special tokens kept, as Hugging Face does."""
        with self._lock:
            ids: list[int] = self._tokenizer(text, truncation=True, max_length=max_tokens)["input_ids"]
        return ids

    def unknown_token(self, token_ids: Sequence[int]) -> str | None:
        """The first token that the tokenizer has and the model does not, as bart-large-cnn's `<mask>`."""
        if not self._unknown:
            return None
        return next((self._unknown[token] for token in token_ids if token in self._unknown), None)

    def known_tokens(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """The tokens without those that the model does not have."""
        return tuple(token for token in token_ids if token not in self._unknown)

    def token_ends(self, text: str) -> list[int]:
        """Where each token of the text ends, in characters; no special tokens."""
        with self._lock:
            encoded = self._tokenizer(
                text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
            )
        return [end for _, end in encoded["offset_mapping"]]

    def unknown_characters(self, text: str) -> int:
        """How many characters of the text, white space not counted, the tokenizer reads as its unknown token.

        0 for a tokenizer without offsets.
        """
        unknown = self._tokenizer.unk_token_id
        if unknown is None or not self._tokenizer.is_fast:
            return 0
        with self._lock:
            encoded = self._tokenizer(
                text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
            )
        spans = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return sum(characters_in(text[start:end]) for token, (start, end) in spans if token == unknown)

    def render(self, token_ids: Sequence[int]) -> RenderedSequence:
        """Text without special tokens, and what each token adds to it.

        The pieces of ordinary tokens joined give the text. A token that ends within a character adds it later; of a
        sequence that no special token ends yet, an incomplete last character is held back.
        """
        text = self._decode(token_ids)
        ordinary = [i for i, token in enumerate(token_ids) if token not in self._special]
        complete = bool(token_ids) and token_ids[-1] in self._special
        available = text if complete else text.rstrip(REPLACEMENT)
        pieces = [self._name(token) for token in token_ids]
        shown = 0
        for i in ordinary:
            last = i == ordinary[-1]
            end = len(available) if last else max(shown, _agreed(self._decode(token_ids[: i + 1]), available))
            pieces[i] = available[shown:end]
            shown = end
        return RenderedSequence(text, tuple(pieces))

    def _decode(self, token_ids: Sequence[int]) -> str:
        with self._lock:
            text: str = self._tokenizer.decode(
                list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        return clean_up(text) if self._cleans_up else text

    def _name(self, token_id: int) -> str:
        if token_id not in self._special:
            return ""
        name: str | None = self._tokenizer.convert_ids_to_tokens(token_id)
        return name or ""


def characters_in(text: str) -> int:
    """Characters that are no white space."""
    return sum(map(len, text.split()))


def _agreed(prefix: str, text: str) -> int:
    """How many characters of the text are settled by the decoding of a prefix of its tokens."""
    prefix = prefix.rstrip(REPLACEMENT)
    if text.startswith(prefix):
        return len(prefix)
    return next((i for i, (a, b) in enumerate(zip(prefix, text, strict=False)) if a != b), min(len(prefix), len(text)))


def load_codec(directory: Path, vocab_size: int | None = None) -> Codec:
    """The tokenizer of a generator directory, for a model that knows `vocab_size` tokens.

    Raises:
        NotFoundError: there is no tokenizer file.
        FailedPreconditionError: the files cannot be read.
    """
    there = [path for name in TOKENIZER_FILES if exists(path := directory / name, Path.is_file)]
    for path in there or [directory / TOKENIZER_FILES[0]]:
        require_file(path, IMPORT_AGAIN)
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    except Exception as error:
        raise FailedPreconditionError(
            f"the tokenizer in {directory} cannot be read: {reason_of(error)}", field=str(directory)
        ) from error
    return Codec(tokenizer, vocab_size)
