"""Vectors of questions, by the encoder that is shipped, kept in the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from ragserve.checkpoint import sha256_of
from retriever_svc.encoder import TextEncoder
from training.questions import Question
from training.rows import Vectors

CHUNK = 256  # questions encoded between two reports


def question_vectors(
    directory: Path, questions: list[Question], cache: Path, report: Callable[[int, int], None]
) -> Vectors:
    """Float32 [n_questions, dim] by the encoder in `directory`; computed once for these questions and this encoder."""
    texts = [question.text for question in questions]
    key = hashlib.sha256("\n".join([sha256_of(directory / "model.onnx"), *texts]).encode()).hexdigest()
    cached = cache / f"questions-{key[:16]}.npy"
    if cached.is_file():
        vectors: Vectors = np.load(cached)
        return vectors
    encoder = TextEncoder.load(directory, device="cpu", threads=torch.get_num_threads())
    parts = []
    for start in range(0, len(texts), CHUNK):
        parts.append(encoder.encode_queries(texts[start : start + CHUNK]))
        report(min(start + CHUNK, len(texts)), len(texts))
    vectors = np.concatenate(parts)
    cache.mkdir(parents=True, exist_ok=True)
    np.save(cached, vectors)
    return vectors
