"""Filters as the command line says them: KEY=VALUE, KEY=A,B, KEY>=VALUE."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from ragserve.errors import InvalidInputError
from ragserve.filters import Range

BOUNDS = {">=": "at_least", ">": "above", "<=": "at_most", "<": "below"}
CONDITION = re.compile(r"([^<>=]+)(>=|<=|=|>|<)(.*)", re.DOTALL)

Filters = dict[str, str | list[str] | Range]


def parse_filters(conditions: Iterable[str] | None) -> Filters | None:
    """The filter that the options say, as the client takes it; None where there are none.

    Bounds of the same key are one range; a comma stands between alternatives.

    Raises:
        InvalidInputError: one is no condition, or a key has two that do not go together.
    """
    found: Filters = {}
    for text in conditions or ():
        parts = CONDITION.fullmatch(text)
        if parts is None:
            raise InvalidInputError(
                "--filter", f"{text!r} is no condition; write KEY=VALUE, KEY=A,B, or KEY>=VALUE (also >, <=, <)"
            )
        key, sign, value = parts[1].strip(), parts[2], parts[3].strip()
        before = found.get(key)
        if sign == "=" and before is None:
            found[key] = value.split(",") if "," in value else value
        elif sign in BOUNDS and before is None:
            found[key] = replace(Range(), **{BOUNDS[sign]: value})
        elif sign in BOUNDS and isinstance(before, Range) and getattr(before, BOUNDS[sign]) is None:
            found[key] = replace(before, **{BOUNDS[sign]: value})
        else:
            raise InvalidInputError("--filter", f"{text!r} does not go together with the other condition on {key!r}")
    return found or None
