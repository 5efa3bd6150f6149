"""Errors name flags, not fields of requests; a timeout says what to do; the version and completion are there."""

from __future__ import annotations

import importlib.metadata
import os
import re
import socket
from pathlib import Path

import pytest

import ragserve
from ragserve.errors import InvalidInputError, RagserveError
from ragserve.passage_rules import USUAL_NAMES
from ragserve_cli.commands import app
from ragserve_cli.flags import command_of, in_flags
from tests.cli.conftest import Cli


@pytest.mark.parametrize(
    ("command", "field", "message", "said"),
    [
        ("ask", "n_docs", "n_docs is 0; leave n_docs out", "--docs | --docs is 0; leave --docs out"),
        ("ask", "options.num_beams", "options.num_beams is 40", "--beams | --beams is 40"),
        ("ask", "options.num_return_sequences", "it is above num_beams", "--returns | it is above --beams"),
        ("ask", "options.sampling.top_p", "options.sampling.top_p is 2", "--top-p | --top-p is 2"),
        ("ask", "search.filter[0].range", "search.filter[0].range is empty", "--filter | --filter is empty"),
        ("kb search", "k", "k is 0; it must be at least 1", "--k | --k is 0; it must be at least 1"),
        ("kb search", "query", "query is empty", "QUERY | QUERY is empty"),
        ("kb rollback", "knowledge_version", "kb has no version 9", "VERSION | kb has no version 9"),
        ("kb build", "source_format", "source_format is 'x'", "--format | --format is 'x'"),
        (
            "kb build",
            "split",
            "split is 'none' and split_words is 4",
            "--split | --split is 'none' and --split-words is 4",
        ),
        ("kb add", "split.tokens", "split.tokens is 9", "--split-tokens | --split-tokens is 9"),
        ("kb add", "a.csv:1", "split.txt has (max_text_bytes)", "a.csv:1 | split.txt has (--max-text-bytes)"),
        ("quickstart", "x", "'max_text_bytes' (max_passage_bytes)", "x | 'max_text_bytes' (--max-passage-bytes)"),
        ("kb info", "/a/n_docs/x", "/a/num_beams/n_docs.json is bad", "/a/n_docs/x | /a/num_beams/n_docs.json is bad"),
    ],
)
def test_fields_become_flags(command: str, field: str, message: str, said: str) -> None:
    found = in_flags(InvalidInputError(field, message), app, command.split())
    assert isinstance(found, RagserveError)
    assert f"{found.field} | {found.message}" == said


def test_the_docs_and_the_help_list_the_usual_names() -> None:
    docs = (Path(__file__).parents[2] / "docs" / "sources.md").read_text()
    table = {cells[1].strip(" `"): cells[3] for line in docs.splitlines() if len(cells := line.split("|")) == 5}
    parameters = {one.name: one for one in command_of(app, ["kb", "build"]).params}
    for column, usual in USUAL_NAMES.items():
        assert usual[0] == column
        assert re.findall(r"`(\w+)`", table[column]) == list(usual[1:])
        assert parameters[f"{column}_column"].help == f"Column of the {column}s; unset: {', '.join(usual)}."


def test_a_timeout_names_its_flag(cli: Cli) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel takes connections, and nobody answers
        target = f"127.0.0.1:{silent.getsockname()[1]}"
        for words in (["ask", "who?", "--target", target], ["kb", "search", "who?", "--target", target]):
            found = cli(*words, "--timeout", 1)
            assert found.returncode == 1
            assert found.stderr.removeprefix(f"searching {target}\n").startswith(
                f"error: no answer from {target} within 1 s (--timeout): allow more with"
            )


def test_version(cli: Cli) -> None:
    assert cli("--version").stdout == f"ragserve {importlib.metadata.version('ragserve')}\n"
    assert ragserve.__version__ == importlib.metadata.version("ragserve")


def test_completion(cli: Cli) -> None:
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # the shell is named, not looked for
    script = cli("--show-completion", "bash", env={**os.environ, **named}).stdout
    assert "_RAGSERVE_COMPLETE=complete_bash" in script
    asked = {"_RAGSERVE_COMPLETE": "complete_bash", "COMP_WORDS": "ragserve kb ver", "COMP_CWORD": "2"}
    assert cli(env={**os.environ, **asked}).stdout.strip() == "versions"
