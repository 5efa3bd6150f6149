from __future__ import annotations

from pathlib import Path

import pytest

from retriever_svc.build import build_knowledge_base
from retriever_svc.encoder import TextEncoder
from retriever_svc.knowledge import KnowledgeBase
from retriever_svc.loading import RetrievalOptions
from retriever_svc.rows import MemoryRows
from tests.retriever_svc.models import write_model
from tests.retriever_svc.sources import WHOLE
from tests.tiny import tiny_passages, write_jsonl

N_PASSAGES = 120


@pytest.fixture(scope="session")
def options() -> RetrievalOptions:
    return RetrievalOptions(device="cpu", threads=1)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("retriever") / "model")


@pytest.fixture(scope="session")
def passages() -> list:
    return tiny_passages(N_PASSAGES, seed=3)


@pytest.fixture(scope="session")
def knowledge_base(
    model: Path, passages: list, options: RetrievalOptions, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    directory = tmp_path_factory.mktemp("knowledge")
    source = write_jsonl(directory / "passages.jsonl", passages)
    build_knowledge_base(source, directory / "kb", model, options=options, build=WHOLE)
    return directory / "kb"


@pytest.fixture(scope="session")
def encoder(model: Path) -> TextEncoder:
    return TextEncoder.load(model / "query_encoder", device="cpu", threads=1)


@pytest.fixture(scope="session")
def rows(knowledge_base: Path) -> MemoryRows:
    return MemoryRows.read(KnowledgeBase.open(knowledge_base).dataset)
