"""Every command with every kind of bad input: no traceback, a status that is not 0, and the flag or path is named.

The cases are made from the commands' own parameters, so that a new command or option is tested, or fails here.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_origin

import pytest
import typer
from typer.testing import CliRunner

from ragserve_cli.commands import app
from ragserve_cli.flags import parameters_of
from tests.cli.conftest import RAGSERVE, Assets
from tests.tiny import save_composite

NOBODY = 65534
UNPRIVILEGED = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
# What works, but for one value that a test puts in; capitals stand for places and addresses.
WORKING = {
    "ask": ["who?", "--target", "TARGET"],
    "score": ["who?", "me", "--target", "TARGET"],
    "retrieve": ["who?", "--target", "TARGET"],
    "info": ["--retriever", "RETRIEVER", "--generator", "GENERATOR"],
    "import-checkpoint": ["HF", "OUT"],
    "quantize-encoder": ["MODEL", "--precision", "int8"],
    "up": ["--config", "CONFIG", "--model", "MODEL", "--knowledge", "KB"],
    "demo": ["--config", "CONFIG", "--model", "MODEL", "--knowledge", "KB", "--questions", "SOURCE"],
    "quickstart": ["SOURCE", "--config", "CONFIG", "--model", "MODEL", "--out", "OUT"],
    "kb build": ["SOURCE", "OUT", "--model", "MODEL"],
    "kb info": ["KB"],
    "kb search": ["who?", "--model", "MODEL", "--knowledge", "KB"],
    "kb add": ["KB", "SOURCE", "--model", "MODEL"],
    "kb delete": ["KB", "p1"],
    "kb versions": ["KB"],
    "kb rollback": ["KB", "1"],
    "kb diff": ["KB", "1"],
    "kb compact": ["KB"],
}
SERVED = ("ask", "score", "retrieve", "info")
STARTING = ("up", "demo", "quickstart")  # start services; a wrong model is found only by them
# Values that are out of range, where -7 is not or is not taken in this position.
OUT_OF_RANGE = {
    ("ask", "length_penalty"): ["99"],
    ("ask", "max_context_tokens"): ["100000"],
    ("kb build", "workers"): ["-7", "--engine", "ray"],
    ("kb build", "split_tokens"): ["0"],
    ("kb build", "overlap"): ["-7", "--split-tokens", "20"],
    ("kb search", "timeout"): ["-7", "--target", "127.0.0.1:9"],
}


@dataclass(frozen=True)
class Option:
    """A parameter of a command: as it is typed, and the type of its value."""

    command: str
    name: str
    shown: str
    annotation: Any
    place: int | None  # among the values without a flag

    def bad(self, *value: str) -> list[str]:
        """The command with a bad value for this parameter."""
        words = [*WORKING[self.command]]
        if self.place is not None:
            words[self.place] = value[0]
        elif self.shown in words:
            words[words.index(self.shown) + 1] = value[0]
        else:
            words += [self.shown, *value]
        return [*self.command.split(), *words]


def commands(group: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, command in getattr(group, "commands", {}).items():
        yield from commands(command, (*names, name))
    if not getattr(group, "commands", None):
        yield " ".join(names), group


COMMANDS = dict(commands(typer.main.get_command(app)))


def options_of(name: str) -> Iterator[Option]:
    place = 0
    for parameter in COMMANDS[name].params:
        annotation = getattr(getattr(parameter, "type_descriptor", None), "annotation", bool)
        argument = not parameter.opts[0].startswith("-")
        yield Option(
            name, parameter.name, parameters_of(COMMANDS[name])[parameter.name], annotation, place if argument else None
        )
        place += argument


OPTIONS = [option for name in COMMANDS for option in options_of(name)]
NUMBERS = [option for option in OPTIONS if option.annotation in (int, float)]
PATHS = [option for option in OPTIONS if option.annotation in (Path, list[Path])]


def named(option: Option) -> str:
    return f"{option.command} {option.name}"


@pytest.fixture
def places(fixed: dict[str, str], request: pytest.FixtureRequest) -> dict[str, str]:
    """With a name of its own for what the test makes, where every user may write."""
    return {**fixed, "OUT": f"{fixed['FREE']}/{abs(hash(request.node.name))}"}


@pytest.fixture(scope="module")
def fixed(assets: Assets) -> Iterator[dict[str, str]]:
    """What the capitals in `WORKING` stand for, in a folder that every user may read; pytest's own are closed."""
    with TemporaryDirectory() as name:
        yield _prepared(Path(name), assets)


def _prepared(folder: Path, assets: Assets) -> dict[str, str]:
    folder.chmod(0o755)
    source = folder / "passages.jsonl"
    source.write_text('{"id": "a", "text": "the old city"}\n')
    shutil.copytree(assets.model, folder / "model")
    shutil.copytree(assets.knowledge, folder / "kb")
    shutil.copy(assets.config, folder / "free.toml")
    save_composite(folder / "hf", "t5", "rag-token")
    (folder / "file").write_text("one\n")
    (folder / "locked").mkdir()
    (folder / "free").mkdir()
    (folder / "locked" / "x").write_text("x")
    subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
    (folder / "locked").chmod(0o700)
    (folder / "free").chmod(0o777)
    found = {"SOURCE": source, "MODEL": folder / "model", "KB": folder / "kb", "CONFIG": folder / "free.toml"}
    found |= {"HF": folder / "hf", "FREE": folder / "free", "FILE": folder / "file", "LOCKED": folder / "locked"}
    return {name: str(path) for name, path in found.items()}


def run(words: Sequence[str], prefix: Sequence[str] = (), **options: Any) -> subprocess.CompletedProcess[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options}
    return subprocess.run([*prefix, str(RAGSERVE), *words], text=True, timeout=100, check=False, **streams)


def check(found: subprocess.CompletedProcess[str], *said: str) -> None:
    """It failed with one line, which names one of `said`; typer draws a box around its own errors."""
    output = (found.stdout or "") + (found.stderr or "")
    assert found.returncode not in (0, 70), output
    assert "Traceback" not in output
    assert "internal error" not in output
    unboxed = "".join(word for word in output.replace("│", " ").split())
    assert any("".join(text.split()) in unboxed for text in said), (said, output)
    assert "╭" in output or sum(line.startswith("error: ") for line in output.splitlines()) == 1


def filled(words: Sequence[str], places: dict[str, str]) -> list[str]:
    return [places.get(word, word) for word in words]


def first_is_quick(cases: Iterable[Any]) -> list[Any]:
    """The first case, and the others for `make test-long`: each starts a program."""
    return [pytest.param(case, marks=pytest.mark.long) if number else case for number, case in enumerate(cases)]


def test_every_command_has_a_working_line() -> None:
    assert set(WORKING) == set(COMMANDS)


@pytest.mark.parametrize("name", first_is_quick(COMMANDS))
def test_values_of_a_wrong_type(name: str, fixed: dict[str, str]) -> None:
    """Also words that are none of the choices. The parser refuses them all, before a command is run."""
    for option in OPTIONS:
        if option.command == name and (get_origin(option.annotation) is Literal or option.annotation in (int, float)):
            refused = CliRunner(env={"COLUMNS": "200"}).invoke(app, filled(option.bad("x y"), fixed))
            assert (refused.exit_code, option.shown in refused.output) == (2, True), refused.output
    check(run([*name.split(), "--no-such-option"]), "--no-such-option")


def out_of_range(option: Option) -> list[str]:
    return option.bad(*OUT_OF_RANGE.get((option.command, option.name), ["-7"]))


@pytest.mark.parametrize("option", first_is_quick([o for o in NUMBERS if o.command not in SERVED]), ids=named)
def test_numbers_out_of_range(option: Option, places: dict[str, str]) -> None:
    check(run(filled(out_of_range(option), places)), option.shown)


@pytest.mark.long
@pytest.mark.parametrize("option", [o for o in NUMBERS if o.command in SERVED], ids=named)
def test_numbers_that_a_service_refuses(option: Option, places: dict[str, str], services: dict[str, str]) -> None:
    found = run(filled(out_of_range(option), {**places, **services}))
    check(found, option.shown)
    assert option.name not in found.stderr.replace(option.shown, "") or "_" not in option.name


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may read everything")
@pytest.mark.parametrize("option", first_is_quick(PATHS), ids=named)
def test_paths_that_are_locked(option: Option, places: dict[str, str], request: pytest.FixtureRequest) -> None:
    """As a user who may not look into the folder."""
    if option.command in STARTING and option.name in ("model", "knowledge"):
        pytest.skip("the services' own tests have it: their interpreter is not everybody's")
    known = {**places, **(request.getfixturevalue("services") if option.command in SERVED else {})}
    path = f"{places['LOCKED']}/x"
    if os.geteuid() != 0:
        Path(places["LOCKED"]).chmod(0)
    prefix = UNPRIVILEGED if os.geteuid() == 0 else ()
    found = run(filled(option.bad(path), known), prefix)
    check(found, path)


@pytest.mark.long
@pytest.mark.parametrize("option", PATHS, ids=named)
def test_paths_below_a_file(option: Option, places: dict[str, str], request: pytest.FixtureRequest) -> None:
    known = {**places, **(request.getfixturevalue("services") if option.command in SERVED else {})}
    path = f"{places['FILE']}/x"
    check(run(filled(option.bad(path), known)), path, places["FILE"])


@pytest.mark.parametrize("name", first_is_quick(["", *COMMANDS]))
def test_output_that_cannot_be_written(name: str) -> None:
    with Path("/dev/full").open("w") as full:
        found = run([*name.split(), "--help"], stdout=full)
    assert (found.returncode, "stdout: no space is left" in found.stderr, "Traceback" in found.stderr) == (
        1,
        True,
        False,
    )


@pytest.mark.parametrize("name", first_is_quick(["kb versions", *SERVED]))
def test_results_that_cannot_be_written(name: str, places: dict[str, str], services: dict[str, str]) -> None:
    words = [*name.split(), *filled(WORKING[name], {**places, **services})]
    with Path("/dev/full").open("w") as full:
        found = run(words, stdout=full)
    assert (found.returncode, found.stderr.count("\n")) == (1, 1), found.stderr
    assert found.stderr.startswith("error: cannot write the output to stdout: no space is left")
    closed = run(words, ["sh", "-c", '"$@" >&-', "sh"])
    assert (closed.returncode, "stdout: it is closed" in closed.stderr) == (1, True), closed.stderr
    assert run(words, ["sh", "-c", '"$@" | true', "sh"]).stderr == ""
    assert run(words, ["sh", "-c", '"$@" >&- 2>&-', "sh"]).returncode == 1


def mounts() -> bool:
    """Whether this process may mount a file system of its own."""
    words = ["unshare", "-m", "sh", "-c", "mount -t tmpfs -o size=1m tmpfs /mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(words, capture_output=True, check=False).returncode == 0


WRITERS = {
    "kb build": ["BIG", "DISK/out", "--model", "MODEL"],
    "import-checkpoint": ["HF", "DISK/out"],
    "quantize-encoder": ["DISK/model", "--precision", "int8"],
    "kb add": ["DISK/kb", "BIG", "--model", "MODEL"],
    "kb delete": ["DISK/kb", "0"],
}
DISKS = {"full": "dd if=/dev/zero of=DISK/fill bs=1k 2>/dev/null", "read-only": "mount -o remount,ro DISK"}


@pytest.mark.parametrize("disk", DISKS)
@pytest.mark.parametrize("name", first_is_quick(WRITERS))
def test_disks_that_cannot_be_written(name: str, disk: str, places: dict[str, str], tmp_path: Path) -> None:
    if not mounts():
        pytest.skip("this process may not mount a file system")
    big = tmp_path / "big.jsonl"
    big.write_text("".join(f'{{"id": "x{i}", "text": "{"the old city " * 40}"}}\n' for i in range(500)))
    mounted = tmp_path / "disk"
    mounted.mkdir()
    words = [word.replace("DISK", str(mounted)) for word in filled(WRITERS[name], {**places, "BIG": str(big)})]
    script = (
        f"mount -t tmpfs -o size=8m tmpfs DISK && cp -r {places['MODEL']} {places['KB']} DISK/ && {{ {DISKS[disk]}; "
    )
    script = f'{script} true; }} && exec "$@"'.replace("DISK", str(mounted))
    found = run([*name.split(), *words], ["unshare", "-m", "sh", "-c", script, "sh"])
    check(found, str(mounted))
    assert ("no space is left" if disk == "full" else "read-only") in found.stderr


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("setpriv"), reason="root may read everything")
def test_parts_of_a_folder_that_cannot_be_read(places: dict[str, str]) -> None:
    """They are refused by name, or skipped and counted as bad rows."""
    folder = Path(f"{places['OUT']}-documents")
    (folder / "closed").mkdir(parents=True)
    (folder / "open.txt").write_text("the old city")
    (folder / "secret.txt").write_text("a river")
    (folder / "secret.txt").chmod(0)
    (folder / "closed").chmod(0)
    prefix = UNPRIVILEGED if os.geteuid() == 0 else ()
    build = ["kb", "build", str(folder), places["OUT"], "--model", places["MODEL"]]
    check(run(build, prefix), str(folder / "closed"))
    done = run([*build, "--skip-bad-rows"], prefix)
    assert done.returncode == 0, done.stderr
    assert "skipped 2 files:" in done.stderr, done.stderr
    assert str(folder / "secret.txt") in done.stderr
    (folder / "closed").chmod(0o755)


def test_debug_shows_the_traceback(places: dict[str, str]) -> None:
    words = ["kb", "info", f"{places['FILE']}/x"]
    assert "Traceback" not in run(words).stderr
    for found in (run(["--debug", *words]), run(words, env={**os.environ, "RAGSERVE_DEBUG": "1"})):
        assert found.returncode == 1
        assert "Traceback" in found.stderr
        assert found.stderr.splitlines()[-1].startswith("error: ")


def test_a_closed_stdin_is_empty(places: dict[str, str], tmp_path: Path) -> None:
    found = run(
        ["kb", "build", "-", str(tmp_path / "o"), "--format", "jsonl", "--model", places["MODEL"]], CLOSED_STDIN
    )
    check(found, "holds no passages", "no passages")


CLOSED_STDIN = ("bash", "-c", 'exec "$@" <&-', "bash")
