"""Errors in the words of the command line: the flag in place of the field of a request that it sets."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import typer

from ragserve.errors import InvalidInputError, RagserveError

# Fields of requests and arguments of functions, and the parameters of commands that set them (the first that a command
# has). What has the same name in both is not listed.
PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "n_docs": ("docs", "k"),
    "k": ("docs", "k"),
    "knowledge": ("kb", "knowledge"),
    "query": ("query", "question"),
    "queries": ("query", "question"),
    "question": ("question", "query"),
    "filter": ("filters",),
    "kind": ("kind", "search_kind"),
    "num_beams": ("beams",),
    "num_return_sequences": ("returns",),
    "no_repeat_ngram_size": ("no_repeat_ngram",),
    "sampling": ("sample",),
    "target": ("target", "retriever"),
    "timeout_seconds": ("timeout",),
    "knowledge_version": ("knowledge_version", "version"),
    "without_columns": ("without_column",),
    "words": ("split_words",),
    "tokens": ("split_tokens",),
    "encoder_precisions": ("encoder_precision",),
}
# A field of a request, as a path or with an underscore; not a part of a file's name.
_FIELD = re.compile(
    r"(?<![\w/.'\"-])("
    r"(?:options|search|sampling|queries\[\d+\])(?:\.\w+(?:\[\d+\])?)+"
    r"|split\.(?:words|tokens|overlap)"
    r"|[a-z]+(?:_[a-z]+)+(?:\[\d+\])?"
    r")(?![\w/-]|\.\w)"
)
_INDEX = re.compile(r"\[\d+\]")


def in_flags(error: BaseException, app: typer.Typer, arguments: Sequence[str]) -> BaseException:
    """The error with flags for fields. `arguments` say which command of `app` was run."""
    if not isinstance(error, RagserveError):
        return error
    return renamed(error, parameters_of(command_of(app, arguments)))


def renamed(error: RagserveError, shown: Mapping[str, str]) -> RagserveError:
    """The error with the names that the user knows parameters of a command by, in place of fields of a request."""
    field = _flag(error.field, shown) or error.field
    message = worded(error.sent or error.message, shown)
    subject, space, rest = message.partition(" ")
    if subject == error.field and field != error.field:
        message = f"{field}{space}{rest}"
    if isinstance(error, InvalidInputError):
        return InvalidInputError(field, message)
    return type(error)(message, field=field, retry_after_seconds=error.retry_after_seconds)


def worded(message: str, shown: Mapping[str, str]) -> str:
    """A message, such as a note, with the same names."""
    return _FIELD.sub(lambda found: _flag(found[1], shown) or found[1], message)


def command_of(app: typer.Typer, arguments: Sequence[str]) -> Any:
    """The command that the arguments choose; the group where they choose none."""
    found: Any = typer.main.get_command(app)
    for argument in arguments:
        commands = getattr(found, "commands", {})
        if argument in commands:
            found = commands[argument]
        elif not commands:
            break
    return found


def parameters_of(command: Any) -> dict[str, str]:
    """The parameters of a command as a user knows them: the long flag, or the name of an argument in capitals."""
    shown = {}
    for parameter in command.params:
        flag = max(parameter.opts, key=len)
        shown[parameter.name] = flag if flag.startswith("-") else str(parameter.metavar or parameter.name).upper()
        if not flag.startswith("-"):  # several values may be one argument, as [KB] QUERY
            shown.update((word.lower(), word) for word in re.findall(r"[A-Z]{2,}", shown[parameter.name]))
    return shown


def _flag(field: str, shown: Mapping[str, str]) -> str | None:
    """The flag for a field: its most specific part that the command has a parameter for."""
    for part in reversed(_INDEX.sub("", field).split(".")):
        for name in PARAMETERS.get(part, (part,)):
            if name in shown:
                return shown[name]
    return None
