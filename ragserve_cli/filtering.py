"""Filters as the command line says them: KEY=VALUE, KEY=A,B, KEY!=VALUE, KEY>=VALUE.

A key or value with a sign (= < >) or comma of its own stands in double quotes, as JSON writes it: place="Paris, Texas".
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from ragserve.errors import InvalidInputError
from ragserve.filters import Condition
from ragserve_cli.text import is_utf8

OPTION = "--filter"
BOUNDS = {">=": "at_least", ">": "above", "<=": "at_most", "<": "below"}
FORMS = "Write KEY=VALUE, KEY=A,B or KEY>=VALUE"
QUOTED = r'"(?:[^"\\]|\\.)*"'
CONDITION = re.compile(rf'\s*({QUOTED}|[^<>=!"]*)\s*([<>=!]+)(.*)', re.DOTALL)
# A value, and another condition behind it, whose key may be left out: "1950 and year<1970", "1950<1970".
FURTHER = re.compile(r"(.*?)(?:[\s,;&]|\band\b)*([^<>=!\s,;&]*)\s*(!?[<>=]+)(.*)", re.DOTALL | re.IGNORECASE)
ITEM = re.compile(rf"\s*({QUOTED}|[^,]*)\s*(,|\Z)", re.DOTALL)
# Signs of other languages, and ours.
MEANT = {"=>": ">=", "=<": "<=", "<>": "!=", "=!": "!=", "!": "!=", "===": "=", "!==": "!="}


@dataclass(frozen=True)
class _Part:
    """One option: a key, a sign, and the value behind it."""

    given: str
    key: str
    sign: str
    value: str


def parse_filters(given: Iterable[str] | None) -> tuple[Condition, ...] | None:
    """The filter that the options say, as the client takes it; None where there are none.

    Bounds of the same key are one range; a comma stands between alternatives.

    Raises:
        InvalidInputError: one cannot be read, or a key has two that do not go together.
    """
    found: dict[tuple[str, str], Condition] = {}
    for text in given or ():
        part = _read(text)
        if part.sign == "!=":
            kind, condition = "none_of", Condition(part.key, none_of=_values(part))
        elif part.sign == "=":
            values = _values(part)
            one = Condition(part.key, equals=values[0])
            kind, condition = "values", one if len(values) == 1 else Condition(part.key, any_of=values)
        else:
            kind, condition = "range", _range(part.key, part.sign, _bound(part))
        before = found.get((part.key, kind))
        found[part.key, kind] = condition if before is None else _joined(part, before, condition)
    return tuple(found.values()) or None


def _read(text: str) -> _Part:
    _check_utf8(text, text)
    parts = CONDITION.fullmatch(text)
    if parts is None:
        raise _unreadable(text)
    key, sign, value = parts[1].strip(), parts[2], parts[3].strip()
    if sign == "==":
        sign = "="
    if sign not in {"=", "!=", *BOUNDS}:
        meant = f"Write {MEANT[sign]} instead of {sign}." if sign in MEANT else f"{sign} is not one of = != >= > <= <."
        raise _unreadable(text, f"{meant} A value that begins with a sign stands in double quotes.")
    key = _unquoted(text, key)
    if not parts[1].startswith('"') and key.endswith(tuple("~^:*|&$?")):  # meant as a sign
        raise _unreadable(text, f"The signs are = != >= > <= <. A key that ends in {key[-1]} stands in double quotes.")
    if not key:
        raise _unreadable(text, "Name a key of the metadata before the sign.")
    return _Part(text, key, sign, value)


def _values(part: _Part) -> tuple[str, ...]:
    """The alternatives behind = or !=, at least one."""
    found: list[str] = []
    start, more = 0, True
    while more:
        item = ITEM.match(part.value, start)
        if item is None:  # cannot be: the second form takes everything up to a comma
            raise _unreadable(part.given)
        if not item[1].strip() and part.value:
            raise _unreadable(part.given, 'An alternative is empty. Write "" for the empty text.')
        found.append(_value(part, item[1].strip(), "<>="))
        start, more = item.end(), item[2] == ","
    return tuple(found)


def _range(key: str, sign: str, bound: str) -> Condition:
    bounds: dict[str, Any] = {BOUNDS[sign]: bound}
    return Condition(key, **bounds)


def _bound(part: _Part) -> str:
    if not part.value:
        raise _unreadable(part.given, f"Write a value after {part.sign}.")
    return _value(part, part.value, "<>=,")


def _value(part: _Part, text: str, signs: str) -> str:
    """A value without its double quotes. Raises InvalidInputError where it has none and holds one of the signs."""
    sign = None if text.startswith('"') else next((one for one in text if one in signs), None)
    if sign is None:
        return _unquoted(part.given, text)
    separate = _conditions(part.key, part.sign, part.value)
    if len(separate) > 1:
        advice = f"{OPTION} takes one condition. Write: {' '.join(f'{OPTION} {shlex.quote(one)}' for one in separate)}."
    else:
        advice = f"{OPTION} takes one condition, and {part.sign} takes one value. Write decimals with a point, as 0.5."
    quoted = shlex.quote(f"{part.key}{part.sign}{json.dumps(text, ensure_ascii=False)}")
    what = "the comma" if sign == "," else sign
    raise InvalidInputError(
        OPTION,
        f"Cannot read the filter {part.given!r}. {advice} If {what} belongs to the value, put the value in double "
        f"quotes: {OPTION} {quoted}.",
    )


def _conditions(key: str, sign: str, value: str) -> list[str]:
    """The conditions that somebody meant who wrote several as one."""
    found = FURTHER.fullmatch(value)
    if found is None:
        return [f"{key}{sign}{value}"]
    first, other, next_sign, rest = found.groups()
    if not first:  # no second key: 1950<1970
        first, other = other, key
    return [f"{key}{sign}{first}", *_conditions(other or key, next_sign, rest.strip())]


def _unquoted(given: str, text: str) -> str:
    """A text without its double quotes, where it begins with one."""
    if not text.startswith('"'):
        return text
    try:
        found = str(json.loads(text, strict=False))
    except ValueError as error:
        raise _unreadable(
            given, f'{text} is no text in double quotes, which is written as in JSON: \\" for a quotation mark.'
        ) from error
    _check_utf8(given, found)  # JSON's escapes can name half a surrogate pair
    return found


def _check_utf8(given: str, text: str) -> None:
    if not is_utf8(text):
        raise InvalidInputError(OPTION, f"Cannot read the filter {given!r}: it is not UTF-8 text.")


def _joined(part: _Part, before: Condition, condition: Condition) -> Condition:
    """Two options on one key as one condition: both bounds of a range, or all the values that it may not have."""
    if before.none_of is not None and condition.none_of is not None:
        return replace(before, none_of=before.none_of + condition.none_of)
    name = BOUNDS.get(part.sign)
    if name is None:
        raise InvalidInputError(
            OPTION,
            f"The filter {part.given!r} contradicts another one on {part.key!r}. For one of several values, write "
            "KEY=A,B in one option.",
        )
    if getattr(before, name) is not None:
        raise InvalidInputError(
            OPTION, f"The filter {part.given!r} gives {part.key!r} a second bound with {part.sign}."
        )
    return replace(before, **{name: getattr(condition, name)})


def _unreadable(text: str, hint: str = "") -> InvalidInputError:
    return InvalidInputError(OPTION, f"Cannot read the filter {text!r}. {FORMS}.{hint and ' ' + hint}")
