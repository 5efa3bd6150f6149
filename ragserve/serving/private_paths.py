"""Errors as clients get them: they name what a service serves, not where on its machine that is."""

from __future__ import annotations

import copy
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ragserve.errors import RagserveError

_INSIDE = r"""[^\s:,;'")]"""  # of the name of a file in a folder


@dataclass(frozen=True)
class PrivatePath:
    """An absolute path of the service, and what clients know it as: a field, and a noun with its article."""

    path: Path
    field: str
    noun: str

    def pattern(self) -> re.Pattern[str]:
        """Finds the absolute path with what follows in it; also as Lance writes it, without the first slash."""
        forms = {os.path.abspath(self.path), os.path.realpath(self.path)}
        forms |= {quote(form) for form in forms}
        either = "|".join(re.escape(form.lstrip("/")) for form in sorted(forms, key=len, reverse=True))
        return re.compile(rf"(?<![\w./-])(?:/(?:{either})(?![\w-])(?:/({_INSIDE}*))?|(?:{either})/({_INSIDE}+))")

    def named(self, found: re.Match[str]) -> str:
        """What stands for the path in a message."""
        inside = found[1] or found[2]
        return f"{inside} in {self.noun}" if inside else self.noun


def without_paths(error: RagserveError, paths: Iterable[PrivatePath]) -> RagserveError:
    """The error without these paths. Those that lie in others come first."""
    message, field = error.message, error.field
    for private in paths:
        pattern = private.pattern()
        message = pattern.sub(private.named, message)
        if pattern.match(field):
            field = private.field
    if (message, field) == (error.message, error.field):
        return error
    public = copy.copy(error)
    public.message, public.field, public.args = message, field, (message,)
    return public
