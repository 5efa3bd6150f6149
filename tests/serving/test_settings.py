from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from ragserve.errors import InvalidInputError
from ragserve.serving.settings import ServerSettings, load_settings


class EchoSettings(BaseSettings):
    """Settings of an echo."""

    model_config = SettingsConfigDict(
        env_prefix="RAGSERVE_ECHO_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    server: ServerSettings = Field(ServerSettings(port=50099, metrics_port=9499), description="the server")
    model: Path = Field(description="model directory")
    device: Literal["auto", "cpu"] = Field("auto", description="device")
    max_k: int = Field(100, ge=1, description="largest k")
    extra_names: list[str] = Field([], description="names")
    warm: bool = Field(True, description="warm up first")


class Plain(BaseSettings):
    model_config = SettingsConfigDict(extra="forbid", frozen=True)
    max_k: int = 1


def load(*argv: str, section: str | None = None) -> EchoSettings:
    return load_settings(EchoSettings, argv, section=section)


def failure(*argv: str) -> InvalidInputError:
    with pytest.raises(InvalidInputError) as caught:
        load(*argv)
    assert "\n" not in caught.value.message
    return caught.value


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "ragserve.toml"
    path.write_text(
        """
        [echo]
        model = "from-file"
        max_k = 7
        [echo.server]
        port = 1234
        max_in_flight = 3
        [retriever]
        anything = "of another service"
        """
    )
    return path


def test_defaults() -> None:
    settings = load("--model", "m")
    assert settings.model == Path("m")
    assert settings.server == ServerSettings(port=50099, metrics_port=9499)
    assert (settings.server.host, settings.server.grace_seconds, settings.server.max_in_flight) == (
        "127.0.0.1",
        10,
        256,
    )


def test_one_nested_value_leaves_its_siblings() -> None:
    assert load("--model=m", "--server.port=7").server == ServerSettings(port=7, metrics_port=9499)


def test_flags_over_environment_over_file_over_defaults(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGSERVE_ECHO_MAX_K", "8")
    monkeypatch.setenv("RAGSERVE_ECHO_SERVER__MAX_IN_FLIGHT", "4")
    monkeypatch.setenv("RAGSERVE_ECHO_DEVICE", "cpu")
    settings = load(f"--config={file}", "--max-k", "9", "--no-warm")
    assert (settings.max_k, settings.device, settings.warm) == (9, "cpu", False)
    assert settings.model == Path("from-file")
    assert settings.server == ServerSettings(port=1234, metrics_port=9499, max_in_flight=4)


def test_flags_may_have_underscores_and_lists() -> None:
    settings = load("--model", "m", "--max_k=3", "--extra_names", "a", "--extra-names", "b")
    assert (settings.max_k, settings.extra_names) == (3, ["a", "b"])


def test_the_config_flag_takes_its_value_apart_too(file: Path) -> None:
    assert load("--max-k", "5", "--config", str(file), "--device", "cpu").max_k == 5


def test_the_section_may_be_named(file: Path) -> None:
    file.write_text('[other]\nmodel = "m"\n')
    assert load("--config", str(file), section="other").model == Path("m")


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load("--model", "m").max_k = 3


@pytest.mark.parametrize(
    ("argv", "field", "words"),
    [
        ([], "model", "model is required; set --model or RAGSERVE_ECHO_MODEL"),
        (["--model", "m", "--port", "7"], "--port", "unrecognized arguments: --port 7"),
        (["--model", "m", "--mode", "7"], "--mode", "unrecognized arguments"),
        (["--model"], "--model", "expected one argument"),
        (["--model", "m", "--max-k", "many"], "max_k", "valid integer"),
        (["--model", "m", "--max-k", "0"], "max_k", "greater than or equal to 1, got '0'; set --max-k or RAGSERVE_"),
        (["--model", "m", "--device", "tpu"], "device", "--device"),
        (["--model", "m", "--server.port", "70000"], "server.port", "RAGSERVE_ECHO_SERVER__PORT"),
        (["--model", "m", "--server.grace-seconds", "-1"], "server.grace_seconds", "greater than or equal to 0"),
    ],
)
def test_wrong_flags(argv: list[str], field: str, words: str) -> None:
    error = failure(*argv)
    assert field in error.field
    assert words in error.message


@pytest.mark.parametrize("name", ["RAGSERVE_ECHO_MODLE", "RAGSERVE_ECHO_SERVER__PROT", "ragserve_echo_x"])
def test_unknown_variables_are_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    error = failure("--model", "m")
    assert error.field == name
    assert f"unknown environment variable {name}" in error.message


def test_variables_of_others_are_no_concern(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGSERVE_RETRIEVER_X", "1")
    assert load("--model", "m").max_k == 100


def test_wrong_values_of_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGSERVE_ECHO_MAX_K", "many")
    assert failure("--model", "m").field == "max_k"
    monkeypatch.setenv("RAGSERVE_ECHO_MAX_K", "1")
    monkeypatch.setenv("RAGSERVE_ECHO_EXTRA_NAMES", "not json")
    assert "extra_names" in failure("--model", "m").message


@pytest.mark.parametrize(
    ("content", "field", "words"),
    [
        ("[echo]\nmodle = 'm'", "modle", "unknown setting modle"),
        ("[echo]\nmodel = 'm'\n[echo.server]\nprot = 1", "server.prot", "unknown setting server.prot"),
        ("[ehco]\nmodel = 'm'", "ehco", "unknown table [ehco]"),
        ("model = 'm'", "model", "unknown table [model]"),
        ("echo = 3", "echo", "is 3; it must be a table"),
        ("[echo\n", "--config", "is not TOML"),
        ("[echo]\nmodel = 'm'\nmax_k = 'many'", "max_k", "valid integer"),
        ("", "model", "model is required"),
    ],
)
def test_wrong_files(content: str, field: str, words: str, file: Path) -> None:
    file.write_text(content)
    error = failure("--config", str(file))
    assert error.field == field
    assert words in error.message


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    error = failure("--config", str(tmp_path / "none.toml"))
    assert (error.field, "no such file" in error.message) == ("--config", True)
    (tmp_path / "latin.toml").write_bytes(b"[echo]\nmodel = '\xff'")
    assert "is not TOML" in failure("--config", str(tmp_path / "latin.toml")).message


def test_help_lists_every_field() -> None:
    program = "from tests.serving.test_settings import EchoSettings, load_settings; load_settings(EchoSettings, ['-h'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    words = " ".join(done.stdout.split())
    for name in ("--config FILE", "--server.port", "--model", "--max-k", "--no-warm", "RAGSERVE_ECHO_SERVER__PORT"):
        assert name in words
    for field in (*EchoSettings.model_fields.values(), *ServerSettings.model_fields.values()):
        assert field.description is not None
        assert field.description in words


def test_a_class_without_a_prefix() -> None:
    assert load_settings(Plain, ["--max-k", "2"], section="echo").max_k == 2
