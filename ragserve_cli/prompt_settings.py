"""The settings of the prompt: the flags of `ragserve ask` that shape an answer, read by the same parser."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args, get_origin, get_type_hints

import typer

from ragserve.arguments import refused
from ragserve.errors import InvalidInputError, RagserveError
from ragserve.requests import generate_request
from ragserve_cli.asking import ask, keywords
from ragserve_cli.flags import parameters_of, renamed

# Parameters of `ragserve ask` that say where to ask or what to print.
NOT_SETTINGS = ("question", "target", "timeout", "stream", "as_json", "explain", "verbose")
ON, OFF = "on", "off"  # the values of a setting whose flag takes none
QUESTION = "?"  # stands for the question where only the settings are parsed


class Settings:
    """Settings by their names: a flag without its dashes."""

    def __init__(self) -> None:
        app = typer.Typer(add_completion=False)
        app.command()(ask)
        self._command: Any = typer.main.get_command(app)
        flags = parameters_of(self._command)
        self._named = {flag: flag.removeprefix("--") for name, flag in flags.items() if name not in NOT_SETTINGS}
        self._parameters: dict[str, Any] = {
            self._named[flags[one.name]]: one for one in self._command.params if flags.get(one.name) in self._named
        }
        self._shown = {one.name: name for name, one in self._parameters.items()}
        self._values: dict[str, tuple[str, ...]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """All settings, in the order of the flags."""
        return tuple(self._parameters)

    def set(self, name: str, value: str) -> str:
        """Sets a value; one that may be repeated is added. Returns the setting's name.

        Raises:
            InvalidInputError: there is no such setting, or the value is bad.
        """
        name = self._known(name)
        if len(value) > 1 and value[0] == value[-1] == "'":  # typed as in a shell
            value = value[1:-1]
        parameter = self._parameters[name]
        if parameter.is_flag and value not in (ON, OFF):
            raise InvalidInputError(name, f"cannot be {value!r}. Give {ON} or {OFF}.")
        changed = {**self._values, name: (*self._values.get(name, ()), value) if parameter.multiple else (value,)}
        try:
            found = self._parsed(changed)
            generate_request(QUESTION, found)  # type: ignore[arg-type]
        except typer.TyperException as error:
            raise refused(name, name, value, self._wanted(name)) from error
        except InvalidInputError as error:
            raise self.in_names(error) from error
        self._values = changed
        return name

    def unset(self, name: str = "") -> None:
        """Gives a setting its default again; without a name, gives all of them theirs."""
        if name:
            self._values.pop(self._known(name), None)
        else:
            self._values.clear()

    def keywords(self) -> dict[str, Any]:
        """The settings as keywords of the client's `generate`."""
        return self._parsed(self._values)

    def value(self, name: str) -> str:
        """What a setting is set to; empty where it has its default."""
        return " and ".join(self._values.get(self._known(name), ()))

    def meaning(self, name: str) -> str:
        """The help of the flag."""
        return str(self._parameters[self._known(name)].help or "")

    def choices(self, name: str) -> tuple[str, ...]:
        """The values of a setting that has only a few."""
        parameter = self._parameters.get(name)
        if parameter is None:
            return ()
        for kind in get_args(get_type_hints(ask)[parameter.name]):
            if get_origin(kind) is Literal:
                return get_args(kind)
        return (ON, OFF) if parameter.is_flag else ()

    def in_names(self, error: RagserveError) -> RagserveError:
        """The error with names of settings for fields of a request and for flags."""
        if error.field in self._named:
            setting = self._named[error.field]
            said = re.sub(rf"(?<![:.]) (?={error.field} )", " and ", error.message)  # one line for each at the prompt
            return InvalidInputError(setting, said.replace(f"{error.field} ", f"/set {setting} "))
        return renamed(error, self._shown)

    def _wanted(self, name: str) -> str:
        """What the value of a setting is, in the words of the client."""
        if choices := self.choices(name):
            return f"one of {', '.join(map(repr, choices))}"
        kinds = get_args(get_type_hints(ask)[self._parameters[name].name])
        return "a whole number" if int in kinds else "a number" if float in kinds else "a text"

    def _known(self, name: str) -> str:
        found = name.removeprefix("--").replace("_", "-")
        if found not in self._parameters:
            raise InvalidInputError("/set", f"there is no setting {name!r}. Type /set to see all.")
        return found

    def _parsed(self, values: dict[str, tuple[str, ...]]) -> dict[str, Any]:
        arguments = []
        for name, given in values.items():
            if not self._parameters[name].is_flag:
                arguments += [f"--{name}={value}" for value in given]
            elif given == (ON,):
                arguments.append(f"--{name}")
        with self._command.make_context("ask", [*arguments, QUESTION]) as context:
            return keywords(context.params)
