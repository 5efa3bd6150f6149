"""Composites written once for all tests of the import."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tiny import save_composite

SEARCH = {"num_beams": 4, "max_length": 50, "min_length": 1, "bad_words_ids": [[0, 0]], "n_docs": 2}


@pytest.fixture(scope="session")
def bart_composite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_composite(tmp_path_factory.mktemp("hf") / "bart", "bart", "rag-token", seed=3, **SEARCH)


@pytest.fixture(scope="session")
def t5_composite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_composite(tmp_path_factory.mktemp("hf") / "t5", "t5-gated", "rag-sequence", seed=4, title_sep=" | ")
