"""What the retriever is asked: the demo's questions, and questions made of passages' titles and first sentences."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from retriever_svc.rows import Rows

QUESTIONS = Path("demo/questions.txt")
SEED = 0
SENTENCE = re.compile(r".*?[.!?](?=\s|$)", re.DOTALL)
WORDS = 12  # of a first sentence: about as long as a question of Natural Questions and its answer
FORMS = ("Who or what is {title}?", "{sentence}", "{title}", "What is known about {title}?")


def questions(rows: Rows, count: int) -> list[str]:
    """`count` different texts, the same in every run: the demo's own first, then the forms in turn."""
    lines = QUESTIONS.read_text(encoding="utf-8").splitlines()
    asked = [line for line in lines if line.strip() and not line.startswith("#")]
    places = np.random.default_rng(SEED).permutation(rows.size)[:count]
    for turn, passage in enumerate(rows.passages(places.astype(np.int64))):
        found = SENTENCE.match(passage.text)
        sentence = " ".join((found.group() if found else passage.text).split()[:WORDS])
        asked.append(FORMS[turn % len(FORMS)].format(title=passage.title, sentence=sentence or passage.title))
    return list(dict.fromkeys(asked))[:count]
