from __future__ import annotations

from pathlib import Path

import pytest

from ragserve.checkpoint import load_manifest
from ragserve.errors import FailedPreconditionError


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format_version": 2, "parts": []}', "PATH has format_version 2; this version of ragserve reads 1"),
        ('{"format_version": 1, "kind": "rag"}', "PATH: kind 'rag' is none of rag-token, rag-sequence, pair"),
        ('{"format_version": 1, "kind": 3}', "PATH is not a ragserve manifest: kind: Input should be a valid string"),
        ("{", "PATH is not a ragserve manifest: "),
    ],
)
def test_a_manifest_that_cannot_be_used(tmp_path: Path, text: str, said: str) -> None:
    """A newer format is named before anything else, since it may have other fields."""
    path = tmp_path / "ragserve.json"
    path.write_text(text)
    with pytest.raises(FailedPreconditionError) as caught:
        load_manifest(tmp_path)
    assert caught.value.message.startswith(said.replace("PATH", str(path)))
