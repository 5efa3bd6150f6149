"""Splits long texts into passages: by words (arXiv 2005.11401, section 3: disjoint 100-word chunks) or by tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from tokenizers import Tokenizer

from ragserve.errors import InvalidInputError
from retriever_svc.build.sources import SourcePassage
from retriever_svc.encoder_config import load_encoder_config

Cut: TypeAlias = Callable[[str], list[str]]


def split_passage(passage: SourcePassage, cut: Cut | None) -> Iterator[SourcePassage]:
    """The chunks of a passage, each with its title and metadata.

    The chunks of a longer passage have the ids ID#0, ID#1, ...; a passage that fits stays as it is.
    """
    chunks = [passage.text] if cut is None else cut(passage.text)
    if len(chunks) < 2:
        yield passage
        return
    for number, text in enumerate(chunks):
        yield replace(passage, id=f"{passage.id}#{number}", text=text)


def by_words(words: int) -> Cut:
    """Chunks of at most `words` words, joined by single spaces, as in DPR."""
    if words < 1:
        raise InvalidInputError("split_words", f"split_words is {words}; it must be at least 1")

    def cut(text: str) -> list[str]:
        found = text.split()
        return [" ".join(found[start : start + words]) for start in range(0, len(found), words)]

    return cut


def by_tokens(encoder: Path, tokens: int, overlap: int) -> Cut:
    """Chunks of at most `tokens` tokens of an encoder's tokenizer, the last `overlap` of each also in the next.

    The text is cut where its tokens begin and end, so that every chunk is a piece of the original.

    Raises:
        InvalidInputError: more tokens than the encoder reads, or an overlap that leaves nothing new.
    """
    tokenizer = Tokenizer.from_file(str(encoder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    most = load_encoder_config(encoder / "encoder.json").max_length - tokenizer.num_special_tokens_to_add(False)
    if not 1 <= tokens <= most:
        raise InvalidInputError(
            "split_tokens", f"split_tokens is {tokens}; it must be between 1 and {most}, what the encoder reads"
        )
    if not 0 <= overlap < tokens:
        raise InvalidInputError("overlap", f"overlap is {overlap}; it must be at least 0 and below {tokens}")

    def cut(text: str) -> list[str]:
        offsets = tokenizer.encode(text, add_special_tokens=False).offsets
        starts = range(0, max(1, len(offsets) - overlap), tokens - overlap)
        spans = (offsets[start : start + tokens] for start in starts)
        return [text[span[0][0] : span[-1][1]] for span in spans if span]

    return cut
