"""Settings of a service: flags over environment over file over defaults, and nothing unknown passes."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import BaseSettings, CliSettingsSource, EnvSettingsSource, InitSettingsSource, SettingsError

from ragserve.arguments import shown
from ragserve.errors import InvalidInputError
from ragserve.files import read_toml

# Tables that a configuration file shared by the services may have.
SECTIONS = ("retriever", "generator", "orchestrator")

T = TypeVar("T", bound=BaseSettings)


class ServerSettings(BaseModel):
    """Where a service listens and what it lets in."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    host: str = Field("127.0.0.1", min_length=1, description="address that the gRPC port binds to")
    port: int = Field(ge=0, le=65535, description="gRPC port; 0 takes a free one")
    metrics_host: str = Field("127.0.0.1", min_length=1, description="address that the metrics port binds to")
    metrics_port: int = Field(ge=0, le=65535, description="port of the Prometheus metrics; 0 takes a free one")
    grace_seconds: float = Field(10.0, ge=0, description="how long calls at work may go on after SIGTERM")
    max_message_bytes: int = Field(64 * 2**20, ge=1024, description="largest message accepted or sent")
    max_connection_age_seconds: float | None = Field(
        None,
        gt=0,
        description="asks clients to connect anew after this long, so that they find new replicas; calls at work go on "
        "until they end; unset: never",
    )
    max_in_flight: int = Field(256, ge=1, description="calls at work at once; more are refused with RESOURCE_EXHAUSTED")
    reflection: bool = Field(True, description="serve gRPC reflection")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is logged")


def load_settings(cls: type[T], argv: Sequence[str] | None = None, *, section: str | None = None) -> T:
    """Reads the settings of one service.

    Precedence: flags, then environment, then the table `section` of the TOML file given by `--config`, then
    defaults. `section` defaults to the last word of the class's env_prefix. Raises InvalidInputError naming the
    key: unknown flag, file key or environment variable, missing value, wrong value.
    """
    arguments = [_dashed(argument) for argument in (sys.argv[1:] if argv is None else argv)]
    prefix = cls.model_config.get("env_prefix", "")
    table = section or prefix.rstrip("_").rpartition("_")[2].lower()
    parser = _Parser(prog=f"python -m {cls.__module__.partition('.')[0]}", description=cls.__doc__, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help=f"TOML file; the settings are in its table [{table}]")
    try:
        flags: CliSettingsSource[T] = CliSettingsSource(
            cls,
            root_parser=parser,
            parse_args_method=_Parser.parse_args,
            cli_implicit_flags=True,
            cli_kebab_case=True,
            cli_avoid_json=True,
            cli_hide_none_type=True,
            cli_show_env_vars=True,
        )
        chosen = parser.parse_args(arguments).config
        _refuse_unknown_variables(cls, prefix)
        sources = (
            flags(args=_without_config(arguments)),
            EnvSettingsSource(cls),
            InitSettingsSource(cls, _read_table(Path(chosen), table) if chosen else {}),
            InitSettingsSource(cls, _nested_defaults(cls)),
        )
        return cls(_build_sources=(sources, {}))
    except ValidationError as error:
        raise _explain(error, prefix) from error
    except SettingsError as error:
        raise InvalidInputError(table, " ".join(str(error).split())) from error


class _Parser(argparse.ArgumentParser):
    """An argument parser that raises instead of exiting."""

    def error(self, message: str) -> NoReturn:
        raise InvalidInputError(_named_flag(message), f"{message}; --help lists every flag")


def _named_flag(message: str) -> str:
    """The first flag named in argparse's message, or the empty string."""
    return next((word.rstrip(":,").partition("=")[0] for word in message.split() if word.startswith("--")), "")


def _dashed(argument: str) -> str:
    """Flags may be written with underscores: --max_k and --max-k are the same."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value


def _without_config(arguments: Sequence[str]) -> list[str]:
    """The flags but --config, which is no field."""
    kept: list[str] = []
    skip = False
    for argument in arguments:
        if not skip and not argument.startswith("--config=") and argument != "--config":
            kept.append(argument)
        skip = not skip and argument == "--config"
    return kept


def _read_table(path: Path, table: str) -> dict[str, Any]:
    """The service's table of a TOML file; an absent table is empty."""
    content = read_toml(path)
    for key, value in content.items():
        if key not in {*SECTIONS, table}:
            known = ", ".join(sorted({*SECTIONS, table}))
            raise InvalidInputError(key, f"unknown table [{key}] in {path}; known: {known}")
        if not isinstance(value, dict):
            raise InvalidInputError(key, f"{key} in {path} is {shown(value)}; it must be a table: [{key}]")
    return dict(content.get(table, {}))


def _nested_defaults(cls: type[BaseSettings]) -> dict[str, Any]:
    """Defaults of nested groups, so that one changed value does not drop its siblings."""
    defaults = {name: field.get_default(call_default_factory=True) for name, field in cls.model_fields.items()}
    return {name: value.model_dump() for name, value in defaults.items() if isinstance(value, BaseModel)}


def _refuse_unknown_variables(cls: type[BaseSettings], prefix: str) -> None:
    """Raises InvalidInputError for a variable that has the prefix but sets nothing."""
    if not prefix:
        return
    known = {f"{prefix}{name}".upper() for name in _variable_names(cls)}
    for name in sorted(os.environ):
        if name.upper().startswith(prefix.upper()) and name.upper() not in known:
            raise InvalidInputError(name, f"unknown environment variable {name}; --help lists those of this service")


def _variable_names(model: type[BaseModel]) -> Iterator[str]:
    """Names after the prefix: the field, and `group__field` for nested groups."""
    for name, field in model.model_fields.items():
        yield name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from (f"{name}__{inner}" for inner in _variable_names(field.annotation))


def _explain(error: ValidationError, prefix: str) -> InvalidInputError:
    """One line for the first thing that is wrong, naming the key and how to set it; unknown keys come first."""
    first = min(error.errors(include_url=False), key=lambda found: found["type"] != "extra_forbidden")
    path = [str(part) for part in first["loc"]]
    key = ".".join(path)
    if first["type"] == "extra_forbidden":
        return InvalidInputError(key, f"unknown setting {key}; --help lists every setting")
    where = f"set --{key.replace('_', '-')} or {prefix}{'__'.join(path).upper()}"
    if first["type"] == "missing":
        return InvalidInputError(key, f"{key} is required; {where}")
    if first["type"] == "value_error":  # of a check of ours
        text = str(first["ctx"]["error"])
        return InvalidInputError(key, f"{text if text.startswith(key) else f'{key}: {text}'}; {where}")
    return InvalidInputError(key, f"{key}: {first['msg'].lower()}, got {first['input']!r}; {where}")
