"""Vectors of questions, by the encoder that is shipped, kept in the cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from retriever_svc.encoder import TextEncoder
from training.questions import Question
from training.rows import Vectors

CHUNK = 256  # questions encoded between two reports


def question_vectors(
    encoder: TextEncoder, questions: list[Question], cached: Path, report: Callable[[int, int], None]
) -> Vectors:
    """Float32 [n_questions, dim]; computed once, then read from `cached`."""
    if cached.is_file():
        vectors: Vectors = np.load(cached)
        if len(vectors) == len(questions):
            return vectors
    parts = []
    for start in range(0, len(questions), CHUNK):
        parts.append(encoder.encode_queries([question.text for question in questions[start : start + CHUNK]]))
        report(min(start + CHUNK, len(questions)), len(questions))
    vectors = np.concatenate(parts)
    cached.parent.mkdir(parents=True, exist_ok=True)
    np.save(cached, vectors)
    return vectors
