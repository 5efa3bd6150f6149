"""What may be asked of a build beyond its source, its model and the precision of its vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ragserve.arguments import check_range
from ragserve.errors import InvalidInputError
from ragserve.passage_rules import MAX_PASSAGE_BYTES, MAX_TEXT_BYTES, PassageLimits
from retriever_svc.build.reading import ReadOptions
from retriever_svc.splitting import Split, SplitOptions

Engine = Literal["local", "ray"]
ENGINES = ("local", "ray")
MAX_SHARD_PASSAGES = 2**20  # one Lance fragment each
MIN_AUTO_SHARD = 1024  # passages: half a minute of BERT-base on two cores, which a kill costs at most
MIN_GIVEN_SHARD = 8192  # where vectors are given: nothing is embedded again, so fewer and larger files
AUTO_SHARDS = 1000


@dataclass(frozen=True)
class BuildOptions:
    """How to build.

    split: texts that the passage encoder would not read to their end are split at sentences ("sentences", as where
        nothing is said), or stay whole ("none"). Rows with given vectors are never split.
    split_tokens, overlap: split texts by the passage encoder's tokens instead of words.
    embeddings: files of vectors computed by the model's passage encoder, one for each row of the source, in order.
    allow_pickle: whether these may be pickles, which run code when they are read.
    skip_bad_rows: leave bad rows out and report them, instead of refusing the source.
    reading: how the columns of the source are read.
    max_text_bytes: UTF-8 bytes that a text may have before it is split.
    max_passage_bytes: UTF-8 bytes that id, title, text and metadata of a passage may have together, after the split.
    shard_passages: passages that are finished together; 0: 1,024 (8,192 with given vectors), or a thousandth of the
        source where that is more.
    engine, workers: where texts are embedded; 0 workers: as many as the Ray cluster has room for.
    notify: is told, in one line, what was skipped or found finished.
    """

    split: Split | None = None
    split_tokens: int | None = None
    overlap: int = 0
    embeddings: tuple[Path, ...] = ()
    allow_pickle: bool = False
    skip_bad_rows: bool = False
    reading: ReadOptions = field(default_factory=ReadOptions)
    max_text_bytes: int = MAX_TEXT_BYTES
    max_passage_bytes: int = MAX_PASSAGE_BYTES
    shard_passages: int = 0
    engine: Engine = "local"
    workers: int = 0
    notify: Callable[[str], None] = lambda _message: None

    def check(self, split_words: int | None) -> None:
        """Raises InvalidInputError for what cannot be, alone or together."""
        if self.engine not in ENGINES:
            raise InvalidInputError("engine", f"engine is {self.engine!r}; it must be one of {', '.join(ENGINES)}")
        if self.embeddings:
            self._check_whole(split_words)
        self.splitting(split_words).check()
        self.reading.check()
        self.limits.check()
        check_range("shard_passages", self.shard_passages, 0, MAX_SHARD_PASSAGES)
        check_range("workers", self.workers, 0, 2**16)
        if self.workers and self.engine == "local":
            raise InvalidInputError("workers", f"workers is {self.workers}; it goes with the engine 'ray'")

    def _check_whole(self, split_words: int | None) -> None:
        said = {"split_words": split_words, "split_tokens": self.split_tokens, "split": self.split}
        for name, value in said.items():
            if value not in (None, "none"):
                whole = "given vectors are those of whole rows"
                raise InvalidInputError(name, f"{name} is {value!r}, and {whole}: do not split the texts")

    @property
    def limits(self) -> PassageLimits:
        """The largest row and passage."""
        return PassageLimits(self.max_passage_bytes, self.max_text_bytes)

    def splitting(self, split_words: int | None) -> SplitOptions:
        """How texts are split: those with given vectors stay whole unless something else is asked for."""
        return SplitOptions("none" if self.embeddings else self.split, split_words, self.split_tokens, self.overlap)

    def why_no_column_vectors(self, split_words: int | None) -> str:
        """Why vectors in the source's column `embeddings` are not used; empty: they are, if they fit."""
        if self.embeddings:
            return "the vectors are those of --embeddings"
        if split_words is not None or self.split_tokens is not None:
            return "its vectors are those of whole texts, and the texts are split"
        return ""

    def shard_size(self, passages: int) -> int:
        """Passages of one shard of a source with that many."""
        least = MIN_GIVEN_SHARD if self.embeddings else MIN_AUTO_SHARD
        return self.shard_passages or min(MAX_SHARD_PASSAGES, max(least, -(-passages // AUTO_SHARDS)))
