from __future__ import annotations

from pathlib import Path

import pytest

from generator_svc.options import EngineOptions
from generator_svc.settings import GeneratorSettings
from ragserve.errors import InvalidInputError
from ragserve.serving.settings import load_settings


def test_defaults_are_the_engines() -> None:
    settings = load_settings(GeneratorSettings, ["--model", "somewhere"])
    assert settings.engine_options() == EngineOptions()
    assert (settings.model, settings.server.port, settings.server.metrics_port) == (Path("somewhere"), 50062, 9462)


def test_flags_go_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAGSERVE_GENERATOR_MAX_SESSIONS", "3")
    monkeypatch.setenv("RAGSERVE_GENERATOR_SERVER__PORT", "0")
    monkeypatch.setenv("RAGSERVE_GENERATOR_DEVICE", "cpu")
    settings = load_settings(GeneratorSettings, ["--model", "m", "--max_sessions", "5"])
    assert (settings.max_sessions, settings.server.port, settings.device) == (5, 0, "cpu")


@pytest.mark.parametrize("flag", ["--precision=int4", "--device=tpu", "--max_rows=0", "--nonsense=1"])
def test_what_is_wrong_is_named(flag: str) -> None:
    with pytest.raises(InvalidInputError, match=flag.strip("-").split("=")[0]):
        load_settings(GeneratorSettings, ["--model", "m", flag])
