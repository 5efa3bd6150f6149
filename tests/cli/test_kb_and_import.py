"""Making what the services load."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Assets, Cli
from tests.tiny import save_composite, tiny_passages, write_jsonl


def test_build_info_search(cli: Cli, assets: Assets, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "passages.jsonl", tiny_passages(6, seed=2, max_words=30))
    out = tmp_path / "kb"
    made = cli("kb", "build", source, out, "--model", assets.model, "--split-words", 10, "--precision", "float16")
    assert made.returncode == 0, made.stderr
    assert "version 1" in made.stderr

    info = json.loads(cli("kb", "info", out, "--json").stdout)
    assert info["passages"] > 6
    assert (info["dimension"], info["precision"], info["version"]) == (32, "float16", 1)
    assert info["metadata_keys"] == info["nested_metadata_keys"] == {}
    assert "passages" in cli("kb", "info", out).stdout

    offline = ["--knowledge", out, "--model", assets.model]
    found = json.loads(cli("kb", "search", "old city", "--k", 3, *offline, "--json").stdout)["passages"]
    assert [row["score"] for row in found] == sorted((row["score"] for row in found), reverse=True)
    assert sum(row["prior"] for row in found) == pytest.approx(1.0, abs=1e-5)
    assert "title" in cli("kb", "search", "old city", "-k", 2, *offline).stdout

    again = cli("kb", "build", source, out, "--model", assets.model)
    assert (again.returncode, again.stderr.count("\n")) == (1, 1)
    assert "exists" in again.stderr
    bad = cli("kb", "search", "old city", "--k", 0, *offline)
    assert (bad.returncode, "\nerror: --k is 0" in bad.stderr) == (2, True)


def test_info_lists_the_keys_of_the_metadata(cli: Cli, assets: Assets, tmp_path: Path) -> None:
    rows = [
        {"id": "a", "text": "a tower", "tags": ["x"], "year": 1990, "none": None},
        {"id": "b", "text": "a king", "tags": {"x": 1}, "year": "old"},
        {"id": "c", "text": "a river", "tags": "x"},
    ]
    source = tmp_path / "passages.jsonl"
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert cli("kb", "build", source, tmp_path / "kb", "--model", assets.model).returncode == 0
    info = json.loads(cli("kb", "info", tmp_path / "kb", "--json").stdout)
    assert (info["metadata_keys"], info["nested_metadata_keys"]) == ({"year": 2, "tags": 1}, {"tags": 2})
    shown = " ".join(cli("kb", "info", tmp_path / "kb").stdout.split())
    assert "metadata keys year (2), tags (1), tags (2, lists or objects: not filterable)" in shown


@pytest.mark.long
def test_import_checkpoint(cli: Cli, tmp_path: Path) -> None:
    source = save_composite(tmp_path / "hf", "t5", "rag-token")
    made = cli("import-checkpoint", source, tmp_path / "model", "--kind", "rag-sequence", "--score-scale", 3)
    assert made.returncode == 0, made.stderr
    assert "warning: this checkpoint was trained as rag-token" in made.stderr
    manifest = json.loads((tmp_path / "model" / "ragserve.json").read_text())
    assert (manifest["kind"], manifest["retriever"]["score_scale"]) == ("rag-sequence", 3.0)
    again = cli("import-checkpoint", source, tmp_path / "model")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert "exists already" in again.stderr
