"""Random cases, the same on every run: a question, documents or how many to retrieve, and a search."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tests import tiny
from tests.system.oracle import Doc, Search

FAMILIES = ("bart", "t5-gated")
MAX_DOCS = 8
PAD = {"bart": 1, "t5-gated": 0}  # never generated: transformers does not count it in a sequence's probability


@dataclass(frozen=True)
class Case:
    """`docs` is empty where the documents come from the retriever."""

    family: str
    index: int
    question: str
    n_docs: int
    docs: tuple[Doc, ...]
    search: Search

    def __str__(self) -> str:
        source = "own" if self.docs else "retrieved"
        return f"{self.family}-{self.index}-{self.search.num_beams}beams-{self.n_docs}docs-{source}"


def _documents(rng: random.Random, count: int) -> tuple[Doc, ...]:
    """Documents of unequal length, a quoted title now and then."""
    words = [rng.randint(3, 30) for _ in range(count)]
    titles = [tiny.tiny_text(rng.randint(1, 3), rng)[:-1].title() for _ in range(count)]
    titles = [f'"{title}"' if rng.random() < 0.2 else title for title in titles]
    return tuple(Doc(title, tiny.tiny_text(n, rng), rng.gauss(0, 1.5)) for title, n in zip(titles, words, strict=True))


def _search(rng: random.Random, family: str, beams: tuple[int, ...], shortest: int) -> Search:
    num_beams = rng.choice(beams)
    penalties = (1.0,) if num_beams == 1 and shortest else (1.0, 1.0, 1.0, 1.3)
    return Search(
        num_beams=num_beams,
        max_length=rng.choice((8, 12, 16)),
        min_length=rng.choice((shortest, 3, 6)),
        length_penalty=rng.choice((0.0, 0.6, 1.0, 2.0)),
        early_stopping=rng.choice((False, True, "never")),
        no_repeat_ngram_size=rng.choice((0, 0, 2, 3)),
        repetition_penalty=rng.choice(penalties),
        bad_words_ids=((PAD[family],),),
    )


def _case(family: str, index: int, beams: tuple[int, ...], shortest: int) -> Case:
    rng = random.Random(f"{family} {index}")
    n_docs = index % MAX_DOCS + 1
    question = tiny.tiny_text(rng.randint(3, 9), rng)
    own = rng.random() < 0.4
    docs = _documents(rng, n_docs) if own else ()
    return Case(family, index, question, n_docs, docs, _search(rng, family, beams, shortest))


def token_cases(count: int) -> list[Case]:
    """RAG-token: greedy and 2 to 4 beams."""
    return [_case(FAMILIES[index % 2], index // 2, (1, 1, 2, 3, 4), 0) for index in range(count)]


def sequence_cases(count: int) -> list[Case]:
    """RAG-sequence; transformers scores a T5 answer of one token without its prior, so two at least."""
    return [_case(FAMILIES[index % 2], 1000 + index // 2, (1, 2, 3, 4), 3) for index in range(count)]
