"""Splits long texts into passages: at sentences within what the encoder reads, by words, or by tokens.

Every chunk is a piece of the original text. Where a text has no boundaries, it is cut by characters.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias, TypeVar

from icu4py.breakers import SentenceBreaker, WordBreaker
from tokenizers import Tokenizer

from ragserve.arguments import check_range
from ragserve.errors import InvalidInputError
from retriever_svc.encoder import holds, load_tokenizer, unknown_token
from retriever_svc.encoder_config import EncoderConfig, load_encoder_config
from retriever_svc.encoder_session import read
from retriever_svc.lexical.analysis import UNSPACED

if TYPE_CHECKING:
    from retriever_svc.build.sources import SourcePassage
    from retriever_svc.types import Passage

Split = Literal["sentences", "none"]
SPLITS = ("sentences", "none")
Cut: TypeAlias = Callable[[str, str], list[str]]  # (title, text) to chunks of the text
P = TypeVar("P", "Passage", "SourcePassage")

# The hard maximum of a chunk: a tokenizer makes one unknown token of 27,000 characters of base64.
CHARACTERS_A_TOKEN, CHARACTERS_A_WORD = 8, 40
LONGEST_WORD = 100  # characters; what is longer without a space counts as several words
SPREAD = 8  # a chunk may be longer than the mean chunk by this part of what the encoder reads
MOST_WORDS = 2**30
LOCALE = "en"  # words and sentences of other scripts are found by script, not by locale

CHUNK_ID = re.compile(r"(.+)#(?:0|[1-9][0-9]{0,8})", re.DOTALL)
WORD = re.compile(r"\S+")
HAS_UNSPACED = re.compile(f"[{UNSPACED}]")
PARAGRAPH = re.compile(r"\n[^\S\n]*\n\s*")
LINE = re.compile(r"\n\s*")
SINGLE_NEWLINE = re.compile(r"(?<![\n\r])\r?\n(?![\r\n])")


def chunk_parent(identifier: str) -> str | None:
    """The id of the passage whose chunk an id names; None for an id that names no chunk."""
    found = CHUNK_ID.fullmatch(identifier)
    return None if found is None else found.group(1)


@dataclass(frozen=True)
class SplitOptions:
    """How texts are split: by words, by tokens (each sharing `overlap` with the one before), else by `split`.

    split: None is "sentences"; words and tokens go with None alone.
    """

    split: Split | None = None
    words: int | None = None
    tokens: int | None = None
    overlap: int = 0

    def check(self) -> None:
        """Raises InvalidInputError for what cannot be, alone or together."""
        if self.split not in (None, *SPLITS):
            raise InvalidInputError("split", f"split is {self.split!r}; it must be one of {', '.join(SPLITS)}")
        if self.words is not None:
            check_range("split_words", self.words, 1, MOST_WORDS)
        if self.words is not None and self.tokens is not None:
            problem = f"split_tokens is {self.tokens} and split_words is {self.words}: give one of them"
            raise InvalidInputError("split_tokens", problem)
        for name, value in (("split_words", self.words), ("split_tokens", self.tokens)):
            if self.split is not None and value is not None:
                raise InvalidInputError("split", f"split is {self.split!r} and {name} is {value}: leave one out")
        if self.overlap and self.tokens is None:
            problem = f"overlap is {self.overlap}, which only split_tokens uses: set split_tokens, or leave it out"
            raise InvalidInputError("overlap", problem)

    @property
    def whole(self) -> bool:
        """Whether texts are not split."""
        return self.split == "none"

    def cut(self, encoder: Path) -> Cut | None:
        """What splits texts for the passage encoder in a directory, and refuses those that it cannot encode.

        None where texts stay whole and the encoder can read all of them. Raises what `check` and `by_tokens` raise.
        """
        self.check()
        config = load_encoder_config(encoder / "encoder.json")
        return OnlyKnownTokens(encoder, config, self._cut(encoder)) if config.vocab_size else self._cut(encoder)

    def _cut(self, encoder: Path) -> Cut | None:
        if self.words is not None:
            return by_words(self.words)
        if self.tokens is not None:
            return by_tokens(encoder, self.tokens, self.overlap)
        return None if self.whole else BySentences(encoder)


def split_passage(passage: P, cut: Cut | None) -> list[P]:
    """The chunks of a passage, each with its title and metadata, and the ids ID#0, ID#1, and so on.

    A passage that fits into one chunk stays as it is. Raises InvalidInputError, with the field `title` or `text`, where
    the encoder cannot encode a chunk.
    """
    chunks = [] if cut is None else cut(passage.title, passage.text)
    if len(chunks) < 2:
        return [passage]
    return [replace(passage, id=f"{passage.id}#{number}", text=text) for number, text in enumerate(chunks)]


class OnlyKnownTokens:
    """Splits texts with another cut, and refuses a chunk with a token that the tokenizer has and the graph does not.

    What the encoder does not read of a chunk may hold such tokens.
    """

    def __init__(self, encoder: Path, config: EncoderConfig, cut: Cut | None) -> None:
        """`encoder`: directory of the passage encoder; `cut`: None for texts that stay whole."""
        self._tokenizer = load_tokenizer(encoder / "tokenizer.json", config)
        self._config, self._cut = config, cut

    def __call__(self, title: str, text: str) -> list[str]:
        """The chunks of a text. Raises InvalidInputError, with the field `title` or `text`."""
        chunks = [text] if self._cut is None else self._cut(title, text)
        for chunk in chunks:
            ids = self._tokenizer.encode(*self._config.passage_input(title, chunk)).ids
            if (token := unknown_token(self._tokenizer, ids, self._config)) is not None:
                raise InvalidInputError("title" if token in title else "text", holds(token))
        return chunks


class BySentences:
    """Splits a text that the encoder would not read to its end, at paragraphs, sentences, lines or words.

    A chunk and its title fit into the encoder's window. Chunks are about equally long. A title takes at most half of
    the window; a longer one is cut by the encoder.
    """

    def __init__(self, encoder: Path) -> None:
        """`encoder`: directory of the passage encoder."""
        self._tokenizer = _tokenizer(encoder)
        self._config: EncoderConfig = load_encoder_config(encoder / "encoder.json")
        self._most_characters = CHARACTERS_A_TOKEN * self._config.max_length

    def __call__(self, title: str, text: str) -> list[str]:
        """The chunks of a text."""
        if len(text) <= self._most_characters and self._fits(title, text):
            return [text]
        window, around = self._config.max_length, self._tokens(title, "")
        room = max(window - around, window // 2, 1)
        offsets = self._tokenizer.encode(text, add_special_tokens=False).offsets
        starts = list(accumulate((start for start, _ in offsets), max))
        boundaries = _Boundaries(text)
        chunks, begin = [], 0
        while begin < len(text):
            end, wanted = len(text), room
            while wanted > 0:  # a chunk may have other tokens alone than within the text
                end = self._end(boundaries, starts, begin, wanted)
                over = self._tokens(title, text[begin:end].strip()) - max(window, around + room)
                if over <= 0:
                    break
                wanted = min(wanted - over, wanted * 3 // 4)
            chunks.append(text[begin:end].strip())
            begin = end
        return [chunk for chunk in chunks if chunk]

    def _end(self, boundaries: _Boundaries, starts: Sequence[int], begin: int, room: int) -> int:
        """Where the chunk that begins at a character ends."""
        first, length = bisect_left(starts, begin), len(boundaries.text)
        left = len(starts) - first
        if left <= room and length - begin <= self._most_characters:
            return length
        parts = max(1, -(-left // room))
        tokens = min(room, left // parts + room // SPREAD + 1)
        limit = starts[first + tokens] if first + tokens < len(starts) else length
        limit = min(max(limit, begin + 1), begin + self._most_characters)
        return limit if limit == length else boundaries.before(begin, limit)

    def _fits(self, title: str, text: str) -> bool:
        return self._tokens(title, text) <= self._config.max_length

    def _tokens(self, title: str, text: str) -> int:
        first, second = self._config.passage_input(title, text)
        return len(self._tokenizer.encode(first, second).ids)


class _Boundaries:
    """Where a text may be cut well."""

    def __init__(self, text: str) -> None:
        self.text = text
        joined = SINGLE_NEWLINE.sub(lambda found: " " * len(found.group()), text)  # a wrapped line ends no sentence
        sentences = [end for _, end in SentenceBreaker(joined, LOCALE).segments()]
        self._ends = (
            ([found.end() for found in PARAGRAPH.finditer(text)], 1 / 2),
            (sentences, 1 / 4),
            ([found.end() for found in LINE.finditer(text)], 1 / 4),
        )

    def before(self, begin: int, limit: int) -> int:
        """The best end, at most `limit`, of a chunk from `begin`: better kinds need not fill it as much."""
        for ends, least in self._ends:
            place = bisect_right(ends, limit)
            if place and ends[place - 1] > begin + least * (limit - begin):
                return ends[place - 1]
        # The next character may join the word before it.
        words = [begin + end for _, end in WordBreaker(self.text[begin : limit + 1], LOCALE).segments()]
        place = bisect_right(words, limit)
        return words[place - 1] if place and words[place - 1] > begin else limit


def by_words(words: int) -> Cut:
    """Chunks of at most `words` words (arXiv 2005.11401, section 3: disjoint 100-word chunks).

    A word is what stands between spaces. In scripts without spaces ICU finds the words; a run of more than 100
    characters without any boundary counts as several.
    """
    most_characters = max(words * CHARACTERS_A_WORD, LONGEST_WORD)

    def cut(_title: str, text: str) -> list[str]:
        starts = list(_word_starts(text))
        chunks, first = [], 0
        while first < len(starts):
            after = bisect_left(starts, starts[first] + most_characters + 1, first + 1, min(first + words, len(starts)))
            chunks.append(text[starts[first] : starts[after] if after < len(starts) else len(text)].strip())
            first = after
        return [piece for chunk in chunks for piece in _pieces(chunk, most_characters)]

    return cut


def _word_starts(text: str) -> Iterator[int]:
    """Where the words of a text begin."""
    for found in WORD.finditer(text):
        piece, start = found.group(), found.start()
        if HAS_UNSPACED.search(piece):
            for begin, end in WordBreaker(piece, LOCALE).segments():
                if begin == 0 or any(map(str.isalnum, piece[begin:end])):
                    yield from range(start + begin, start + end, LONGEST_WORD)
        elif len(piece) > LONGEST_WORD:
            yield from range(start, start + len(piece), CHARACTERS_A_WORD)
        else:
            yield start


def _pieces(chunk: str, most_characters: int) -> Iterator[str]:
    """A chunk that is too long all the same, by characters."""
    for start in range(0, len(chunk), most_characters):
        piece = chunk[start : start + most_characters].strip()
        if piece:
            yield piece


def by_tokens(encoder: Path, tokens: int, overlap: int) -> Cut:
    """Chunks of at most `tokens` tokens of an encoder's tokenizer, the last `overlap` of each also in the next.

    The text is cut where its tokens begin and end, so that every chunk is a piece of the original.

    Raises:
        InvalidInputError: more tokens than the encoder reads, or an overlap that leaves nothing new.
    """
    tokenizer = _tokenizer(encoder)
    most = load_encoder_config(encoder / "encoder.json").max_length - tokenizer.num_special_tokens_to_add(False)
    check_range("split_tokens", tokens, 1, most, why=f"the encoder reads at most {most} tokens of a text")
    check_range("overlap", overlap, 0, tokens - 1, why=f"split_tokens is {tokens}, and each part must add a token")

    def cut(_title: str, text: str) -> list[str]:
        offsets = tokenizer.encode(text, add_special_tokens=False).offsets
        starts = range(0, max(1, len(offsets) - overlap), tokens - overlap)
        spans = [offsets[start : start + tokens] for start in starts]
        chunks = (text[span[0][0] : span[-1][1]] for span in spans if span)
        return [piece for chunk in chunks for piece in _pieces(chunk, max(CHARACTERS_A_TOKEN * tokens, LONGEST_WORD))]

    return cut


def _tokenizer(encoder: Path) -> Tokenizer:
    """The encoder's tokenizer, cutting nothing and never padding."""
    path = encoder / "tokenizer.json"
    tokenizer = read(path, lambda: Tokenizer.from_file(str(path)))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
