"""`ragserve kb build` as a person runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from retriever_svc.knowledge import describe
from tests.retriever_svc.models import DIMENSION

MAIN = "from ragserve_cli.main import main; main()"


def kb_build(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MAIN, "kb", "build", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)


def test_bad_rows_are_reported_and_the_status_says_what_was_wrong(model: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "a.tsv", tmp_path / "kb"
    source.write_text('id\ttext\n1\tone\n2\t"no end\n3\t"two"\n')
    refused = kb_build(source, out, "--model", model)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert f"{source}:3: badly quoted" in refused.stderr
    assert "(--skip-bad-rows leaves such rows out)" in refused.stderr
    kept = kb_build(source, out, "--model", model, "--skip-bad-rows", "--split-tokens", 8, "--overlap", 2)
    assert kept.returncode == 0, kept.stderr
    assert f"skipped 1 of 3 rows:\n  {source}:3: badly quoted" in kept.stderr
    assert "version 1, 2 passages of 32 dimensions" in kept.stderr


def test_vectors_and_a_folder(model: Path, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("a.md", "b.txt"):
        (tmp_path / "docs" / name).write_text(f"# {name}\n\ntext")
    np.save(tmp_path / "v.npy", np.ones((2, DIMENSION), dtype=np.float32))
    made = kb_build(tmp_path / "docs", tmp_path / "kb", "--model", model, "--embeddings", tmp_path / "v.npy")
    assert made.returncode == 0, made.stderr
    assert describe(tmp_path / "kb").passages == 2
    (tmp_path / "v.pkl").write_bytes(b"")
    refused = kb_build(tmp_path / "docs", tmp_path / "kb2", "--model", model, "--embeddings", tmp_path / "v.pkl")
    assert (refused.returncode, "is a pickle" in refused.stderr) == (2, True)
