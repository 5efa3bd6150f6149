"""The documents name what is there: modules, dependencies, files that are linked to."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ARCHITECTURE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
PACKAGES = ("ragserve", "retriever_svc", "generator_svc", "orchestrator", "checkpoint_import", "ragserve_cli")
LEAVES = ("training", "bench")
DOCUMENTS = tuple(
    str(path.relative_to(ROOT)) for folder in (".", "docs", "deploy") for path in sorted((ROOT / folder).glob("*.md"))
)


def test_every_module_says_what_it_does() -> None:
    """`scripts/modules.py` prints a line for each module, and none of them is empty."""
    printed = subprocess.run(
        [sys.executable, str(ROOT / "scripts/modules.py")], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout
    rows = dict(re.findall(r"^(\S+\.py)[ ]{2,}(\S.*)$", printed, re.MULTILINE))
    modules = {
        str(path.relative_to(ROOT))
        for package in (*PACKAGES, *LEAVES)
        for path in (ROOT / package).rglob("*.py")
        if path.name != "__init__.py" and "v1" not in path.parts
    }
    assert set(rows) == modules


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    names = {re.split(r"[\[<>=~! ]", name)[0] for name in wanted} - {"ragserve"}
    section = ARCHITECTURE.split("## Dependencies")[1]
    assert not {name for name in names if not re.search(rf"(?<![\w-]){re.escape(name)}(?![\w-])", section)}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    path = ROOT / document
    links = re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text(encoding="utf-8"))
    assert not [link for link in links if not (path.parent / link).exists()]


def test_make_targets_in_the_documents_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = {
        name
        for document in DOCUMENTS
        for name in re.findall(r"(?:^|`)make ([a-z-]+)", (ROOT / document).read_text(encoding="utf-8"), re.MULTILINE)
    }
    assert named
    assert named <= targets


def test_the_command_line_in_the_readme_exists() -> None:
    """Every `ragserve …` command of the README answers to --help."""
    lines = re.findall(r"`ragserve ([a-z-]+)", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert lines
    shown = subprocess.run(
        [Path(sys.executable).with_name("ragserve"), "--help"], capture_output=True, text=True, timeout=60, check=True
    ).stdout
    assert not [name for name in lines if name not in shown]
