"""Prompts of an encoder, in a knowledge base: which models fit one, and what its vectors are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ragserve.errors import FailedPreconditionError
from retriever_svc.build import build_knowledge_base
from retriever_svc.encoder import TextEncoder
from retriever_svc.knowledge import KnowledgeBase
from retriever_svc.loading import RetrievalOptions
from retriever_svc.search import search_offline
from tests.retriever_svc.models import write_encoder, write_manifest
from tests.tiny import tiny_passages, tiny_question_encoder, write_jsonl


def write_prompted(directory: Path, query: str, passage: str) -> Path:
    """A model directory whose one encoder has prompts."""
    prompts = {name: text for name, text in (("query_prompt", query), ("passage_prompt", passage)) if text}
    write_encoder(directory / "query_encoder", tiny_question_encoder(0), **prompts)
    return write_manifest(directory)


def test_a_knowledge_base_knows_the_prompt_of_its_passages(tmp_path: Path) -> None:
    model = write_prompted(tmp_path / "model", "query: ", "passage: ")
    build_knowledge_base(write_jsonl(tmp_path / "p.jsonl", tiny_passages(5)), tmp_path / "kb", model)
    encoder = TextEncoder.load(model / "query_encoder", threads=1)
    rows = KnowledgeBase.open(tmp_path / "kb").rows(2**30)
    positions = np.arange(KnowledgeBase.open(tmp_path / "kb").passages)
    stored = rows.passages(positions)
    texts = [f"passage: {one.title}. {one.text}" for one in stored]
    plain = TextEncoder.load(write_prompted(tmp_path / "plain", "", "") / "query_encoder", threads=1)
    np.testing.assert_allclose(rows.vectors(positions), plain.encode_queries(texts), atol=1e-6)
    np.testing.assert_allclose(encoder.encode_queries(["great city"]), plain.encode_queries(["query: great city"]))
    np.testing.assert_allclose(encoder.encode_passages(stored), plain.encode_queries(texts), atol=1e-6)


def test_a_model_with_another_passage_prompt_is_refused(tmp_path: Path) -> None:
    model = write_prompted(tmp_path / "model", "query: ", "passage: ")
    source = write_jsonl(tmp_path / "p.jsonl", tiny_passages(5))
    build_knowledge_base(source, tmp_path / "kb", model)
    options = RetrievalOptions(device="cpu", threads=1)
    another_query = write_prompted(tmp_path / "query", "question: ", "passage: ")  # no passage's vector depends on it
    no_query = write_prompted(tmp_path / "no-query", "", "passage: ")
    for other in (another_query, no_query):
        hits, _ = search_offline(other, tmp_path / "kb", "great city", k=2, options=options)
        assert len(hits) == 2
    for name, prompt in (("other", "document: "), ("none", "")):
        other = write_prompted(tmp_path / name, "query: ", prompt)
        message = rf"\(the prompt 'passage: ' before passages, not {prompt!r}\)"
        with pytest.raises(FailedPreconditionError, match=message):
            search_offline(other, tmp_path / "kb", "great city", k=2, options=options)
