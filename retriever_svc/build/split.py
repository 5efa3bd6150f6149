"""Splits long texts into passages (arXiv 2005.11401, section 3: disjoint 100-word chunks of each article)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from retriever_svc.build.sources import SourcePassage


def split_passages(passages: Iterable[SourcePassage], words: int) -> Iterator[SourcePassage]:
    """Chunks of at most `words` words, each with title and metadata of its passage.

    The chunks of a longer passage have the ids ID#0, ID#1, ...; a passage that fits stays as it is.
    """
    for passage in passages:
        tokens = passage.text.split()
        if len(tokens) <= words:
            yield passage
            continue
        for number, start in enumerate(range(0, len(tokens), words)):
            yield replace(passage, id=f"{passage.id}#{number}", text=" ".join(tokens[start : start + words]))
