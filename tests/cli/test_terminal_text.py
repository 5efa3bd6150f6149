"""What comes from outside cannot steer a terminal: passages, ids, answers, errors, logs and pages."""

from __future__ import annotations

import io
import json
import logging
import subprocess
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from ragserve.boundary import ending_of
from ragserve.errors import InvalidInputError
from ragserve.printable import counted, printable, to_json
from ragserve.results import Answer, Hypothesis, Passage
from ragserve.serving.logs import KeyValueFormatter
from ragserve_cli import console
from ragserve_cli.explain import render_page
from tests.cli.conftest import Assets, Cli

HOSTILE = "a\x1b[31mred\x9b2J\x07\u202etxet\u2066 \u2028 end\tx\ny"
UNSAFE = set("\x1b\x9b\x07\u202e\u2066\u2028")


def test_counts_agree_with_their_nouns() -> None:
    assert (counted(1, "row"), counted(0, "row"), counted(2500, "row")) == ("1 row", "0 rows", "2,500 rows")
    forms = "passage is", "passages are"
    assert (counted(1, *forms), counted(2, *forms)) == ("1 passage is", "2 passages are")


def test_escapes_and_keeps_the_rest() -> None:
    assert printable(HOSTILE) == "a\\x1b[31mred\\x9b2J\\x07\\u202etxet\\u2066 \\u2028 end\tx\ny"
    assert json.loads(to_json({"text": HOSTILE})) == {"text": HOSTILE}
    assert not UNSAFE & set(to_json({HOSTILE: [HOSTILE]}))


def test_everything_that_rich_prints_is_harmless() -> None:
    out = console.SafeConsole(file=io.StringIO(), width=200, emoji=False)
    table = Table(HOSTILE, title=HOSTILE)
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE))
    for what in (HOSTILE, Text(HOSTILE), Text.assemble(("t", "bold"), HOSTILE), table):
        out.print(what)
    out.rule(HOSTILE)
    out.print(":boom:")
    shown = out.file.getvalue()  # type: ignore[attr-defined]
    assert not UNSAFE & set(shown)
    assert shown.count("\\x1b[31mred") >= 3
    assert ":boom:" in shown


def test_logs_and_pages_are_harmless() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 1, HOSTILE, None, None)
    record.fields = {"reason": HOSTILE}
    line = KeyValueFormatter("retriever").format(record)
    assert not UNSAFE & set(line)
    assert "\n" not in line
    passage = Passage(HOSTILE, HOSTILE, HOSTILE, 1.0, 1.0, 1.0)
    page = render_page(HOSTILE, Answer((Hypothesis(HOSTILE, -1.0, -1.0, (1,)),), (passage,), (), 1, {}, (HOSTILE,)))
    assert not UNSAFE & set(page)
    assert ending_of(InvalidInputError("f", HOSTILE)).text == f"f: {HOSTILE}"  # escaped where it is printed


@pytest.mark.long
def test_a_hostile_knowledge_base(cli: Cli, assets: Assets, tmp_path: Path) -> None:
    def build(identifier: str) -> subprocess.CompletedProcess[str]:
        source = tmp_path / "p.jsonl"
        source.write_text(json.dumps({"id": identifier, "title": HOSTILE, "text": HOSTILE}) + "\n")
        return cli("kb", "build", source, tmp_path / "kb", "--model", assets.model)

    refused = build(f"1{HOSTILE}")
    assert refused.returncode == 2
    assert "p.jsonl:1: column 'id' holds the control character U+001B at position 2: remove it" in refused.stderr
    assert not UNSAFE & set(refused.stderr)
    assert build("1\u202e").returncode == 0
    search = ["kb", "search", "red", "-k", 1, "--knowledge", tmp_path / "kb", "--model", assets.model]
    shown, exact = cli(*search), cli(*search, "--json")
    assert not UNSAFE & set(shown.stdout)
    assert not UNSAFE & set(exact.stdout)
    assert json.loads(exact.stdout)["passages"][0]["text"] == HOSTILE
