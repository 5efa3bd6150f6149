"""Every command, script and piece of data in README and docs runs, and prints what the page shows, answers included."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import Block, commands, read_blocks
from tests.docs.compare import difference
from tests.docs.network import OwnNetwork
from tests.docs.session import ROOT, Session

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "deploy/**/*.md", "demo/*.md", "examples/**/*.md")
    for path in ROOT.glob(pattern)
    if "lighthouse" not in path.parts  # documents of an example, not about it
)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("page", PAGES)
def test_the_page_runs(page: str, tmp_path: Path) -> None:
    blocks = read_blocks(ROOT / page)
    with OwnNetwork() as network:
        session = Session(tmp_path, network)
        try:
            for block in blocks:
                wrong = session.run(block)
                assert not wrong, f"{page}:{block.line}: {wrong}"
        finally:
            session.close()


def test_the_readme_runs_something() -> None:
    run = [block for block in read_blocks(ROOT / "README.md") if not block.not_run]
    assert {"console", "python"} <= {block.language for block in run}
    assert [block for block in run if block.language == "python" and block.expected]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("```\nragserve up\n```\n", "console block"),
        ("```bash\nragserve up\n```\n", "not one of"),
        ("```console\nragserve up\n```\n", r"begins with '\$ '"),
        ("```text\noutput of nothing\n```\n", "python block before it"),
    ],
)
def test_a_command_cannot_hide_from_the_tests(text: str, message: str, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_blocks(page)


def test_blocks_are_read(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "<!-- not run: needs a cluster -->\n```console\n$ kubectl apply -k x\n```\n\n"
        "<!-- keep running -->\n```console\n"
        "$ ragserve quickstart a \\\n  --out b   # comment\nhello\nquestion> who?\nme\n```\n\n"
        "```python\nprint(1)\n```\n\nprints\n\n```text\n1\n```\n"
    )
    first, second, third = read_blocks(page)
    assert first.not_run == "needs a cluster"
    assert second.keep_running
    command = commands(second)[0]
    assert (command.line, command.inputs) == ("ragserve quickstart a   --out b", ("who?",))
    assert third == Block("python", "print(1)\n", 15, expected="1\n")


@pytest.mark.parametrize(
    ("expected", "real", "agrees"),
    [
        ("a\nb\n", "a\n\nb  \n", True),
        ("a\n…\nd\n", "a\nb\nc\nd\n", True),
        ("a\n…\n", "a\nb\n", True),
        ("a\n", "a\nb\n", False),
        ("a\nb\n", "a\n", False),
        ("Agnes Calloway\n", "Tobias Wrenn\n", False),
        ("p = 81.2% in 0.35 s\n", "p = 81.3% in 12.91 s\n", True),
        ("p = 81.2%\n", "p = 31.2%\n", False),
        ("made … for you\n", "made by us for you\n", True),
        ("made … for you\n", "made by us for me\n", False),
        ("x 0.35 s (retriever 0.01 s)\n", "x 1.2 s (retriever 3 ms)\n", True),
    ],
)
def test_comparison(expected: str, real: str, agrees: bool) -> None:
    assert (difference(expected, real) == "") is agrees
