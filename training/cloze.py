"""Extra training questions made from the passages: a sentence with its subject, or a name in it, asked for."""

from __future__ import annotations

import random
import re

from training.corpus import Summary
from training.rows import ReaderExample

SENTENCES = 4  # of the start of a passage
SHORTEST, LONGEST = 30, 220  # characters of a sentence
ASK_FOR_TITLE = 0.6  # share of the questions
QUESTION_WORDS = ("what", "this", "which", "who")
NAME = re.compile(r"\b(?:[A-Z][a-z]+(?: [A-Z][a-z]+)+|[0-9]{4}|[A-Z][a-z]{3,})\b")


def cloze_examples(corpus: list[Summary], seed: int) -> list[ReaderExample]:
    """At most one question for each passage."""
    rng = random.Random(seed)  # noqa: S311
    made = ((index, cloze(rng, summary)) for index, summary in enumerate(corpus))
    return [ReaderExample(pair[0], index, pair[1]) for index, pair in made if pair]


def cloze(rng: random.Random, summary: Summary) -> tuple[str, str] | None:
    """A question and its answer, or None where the sentence drawn gives none."""
    sentence = rng.choice(re.split(r"(?<=[.!?])\s+", summary.text)[:SENTENCES])
    title = re.sub(r"\s*\(.*?\)", "", summary.title)
    if not SHORTEST <= len(sentence) <= LONGEST:
        return None
    if rng.random() < ASK_FOR_TITLE:
        if not re.search(re.escape(title), sentence, re.IGNORECASE):
            return None
        word = rng.choice(QUESTION_WORDS)
        return re.sub(re.escape(title), word, sentence, flags=re.IGNORECASE).rstrip(".") + "?", title
    names = [name for name in NAME.findall(sentence[1:]) if name.lower() not in title.lower()]
    if not names:
        return None
    name = rng.choice(names)
    return f"{title}: " + sentence.replace(name, "what", 1).rstrip(".") + "?", name
