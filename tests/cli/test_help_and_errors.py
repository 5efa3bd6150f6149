"""Help texts, and errors of one line with what to do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ragserve.errors import InvalidInputError
from ragserve_cli.commands import app
from ragserve_cli.plan import Assets, plan
from tests.cli.conftest import Cli

COMMANDS = (
    *("up", "ask", "score", "retrieve", "info", "import-checkpoint", "quantize-encoder", "demo"),
    *("kb build", "kb info", "kb search", "kb add", "kb delete", "kb versions", "kb rollback", "kb diff", "kb compact"),
)


def help_of(command: str) -> str:
    found = CliRunner(env={"COLUMNS": "200"}).invoke(app, [*command.split(), "--help"], prog_name="ragserve")
    assert found.exit_code == 0
    return found.output


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_every_command_has_help(command: str) -> None:
    assert f"Usage: ragserve {command}".strip() in help_of(command)


def test_ask_offers_every_generation_setting() -> None:
    text = help_of("ask")
    options = "mode decoding beams docs stream explain json target timeout temperature top-k top-p seed min-length"
    options += " max-length max-new-tokens min-new-tokens length-penalty early-stopping no-repeat-ngram bad-words"
    options += " repetition-penalty returns sample question-form truncation max-context-tokens knowledge-version filter"
    assert [option for option in options.split() if f"--{option} " not in text] == []


@pytest.mark.parametrize(
    ("line", "field", "said"),
    [
        ("port = [1]", "server.port", r"\[1\] is not a port"),
        ('port = "70000"', "server.port", "'70000' is not a port"),
        ("metrics_port = 1979-05-27", "server.metrics_port", "is not a port"),
        (f'host = "{"é" * 70}"', "server.host", "'é{70}' is no name of a host"),
        ('metrics_host = "a\\u0000"', "server.metrics_host", "is no name of a host"),
    ],
)
def test_places_of_services_that_cannot_be_are_named(line: str, field: str, said: str, tmp_path: Path) -> None:
    config = tmp_path / "services.toml"
    config.write_text(f"[retriever.server]\n{line}\n")
    with pytest.raises(InvalidInputError, match=said) as caught:
        plan(Assets(config, tmp_path, tmp_path), free_ports=True)
    assert caught.value.field == f"retriever {field}"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("ask who designed it", "(designed it): put the question in quotes"),
        ("retrieve who designed it", "(designed it): put the question in quotes"),
        ("score who designed it", "(it): put the question and the answer in quotes"),
    ],
)
def test_questions_without_quotes_are_told_how_to_stand(words: str, said: str) -> None:
    found = CliRunner(env={"COLUMNS": "200"}).invoke(app, words.split())
    assert found.exit_code == 2
    assert said in found.output


def test_the_script_is_installed(cli: Cli) -> None:
    assert "import-checkpoint" in cli("--help").stdout


def test_start_is_quick_because_heavy_things_load_late() -> None:
    heavy = "{'torch', 'transformers', 'onnxruntime', 'lance', 'grpc', 'numpy'}"
    script = f"import sys, ragserve_cli.commands; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["kb", "info", "/nowhere/kb"], 1, "/nowhere/kb is not a knowledge base"),
        (["kb", "build", "/nowhere.jsonl", "OUT", "--model", "/nowhere"], 2, "/nowhere.jsonl does not exist"),
        (["import-checkpoint", "/nowhere", "OUT"], 1, "/nowhere is not a directory"),
        (["quantize-encoder", "/nowhere", "--precision", "int8"], 1, "/nowhere/ragserve.json is missing"),
        (["up", "--config", "/nowhere.toml"], 2, "error: --config: cannot read /nowhere.toml"),
        (["ask", "who?", "--target", "127.0.0.1:9", "--timeout", "20"], 1, "nothing listens at 127.0.0.1:9"),
        (["ask", "who?", "--bad-words", "a,b"], 2, "error: --bad-words: 'a,b' is not a list of token ids"),
        (["ask", "who?", "--timeout", "-1"], 2, "--timeout"),
        (["kb", "search", "wh\udcff?"], 2, "error: QUERY is not UTF-8 text"),
    ],
)
@pytest.mark.long
def test_errors_are_one_line(cli: Cli, tmp_path: Path, arguments: list[str], status: int, said: str) -> None:
    found = cli(*[str(tmp_path / "out") if argument == "OUT" else argument for argument in arguments])
    assert found.returncode == status
    assert said in found.stderr
    assert found.stderr.startswith("error: ")
    assert found.stderr.count("\n") == 1
    assert found.stdout == ""


def test_a_file_of_questions_that_is_not_utf8_is_named(cli: Cli, tmp_path: Path) -> None:
    questions = tmp_path / "questions.txt"
    questions.write_bytes(b"who?\nwh\xff?\n")
    found = cli("demo", "--questions", questions)
    assert found.returncode == 2
    assert found.stderr == f"error: {questions} is not UTF-8 text (byte 7): save it as UTF-8\n"


def test_info_names_its_own_options(cli: Cli) -> None:
    found = cli("info", "--retriever", "127.0.0.1:9")
    assert found.returncode == 1
    assert "--retriever or --generator" in found.stderr
    assert "--target" not in found.stderr


def test_a_wrong_option_is_named(cli: Cli) -> None:
    found = cli("ask", "--beam", "3", "who?")
    assert found.returncode == 2
    assert "--beam" in found.stderr
