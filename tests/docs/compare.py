"""Compares the output of a command with what a page shows.

`…` alone on a line stands for any number of lines, and within a line for any text. Times (0.35 s, 12 ms) may differ,
and other numbers by one in the last digit shown or 2 %. Space at the end of a line and empty lines do not count.
"""

from __future__ import annotations

import re

ANY_LINES = "…"
TIME = re.compile(r"\b\d+(?:\.\d+)? ?(?:s|ms)\b")
NUMBER = re.compile(r"-?\d+\.\d+")
TOLERANCE = 0.02


def difference(expected: str, real: str) -> str:
    """The first expected line that the output does not have at its place; empty where they agree."""
    wanted, found = _lines(expected), _lines(real)
    place, free = 0, False
    for line in wanted:
        if line == ANY_LINES:
            free = True
            continue
        end = len(found) if free else min(place + 1, len(found))
        match = next((number for number in range(place, end) if same(line, found[number])), None)
        if match is None:
            shown = found[place] if place < len(found) else "(nothing more)"
            return f"the page shows {line!r}, the output has {shown!r}"
        place, free = match + 1, False
    if not free and place < len(found):
        return f"the page shows nothing more, the output has {found[place]!r}"
    return ""


def same(expected: str, real: str) -> bool:
    """Whether one line of output is the line that the page shows."""
    expected, real = (TIME.sub("<time>", line) for line in (expected, real))
    pattern = ".*".join(_pattern(part) for part in expected.split(ANY_LINES))
    match = re.fullmatch(pattern, real)
    return match is not None and _close(NUMBER.findall(expected), list(match.groups()))


def _pattern(text: str) -> str:
    """A regular expression for a text, with a group for each number."""
    return r"(-?\d+\.\d+)".join(re.escape(part) for part in NUMBER.split(text))


def _close(expected: list[str], real: list[str]) -> bool:
    return all(_near(one, other) for one, other in zip(expected, real, strict=True))


def _near(one: str, other: str) -> bool:
    step = 10.0 ** -len(one.partition(".")[2])
    return abs(float(one) - float(other)) <= max(1.5 * step, TOLERANCE * abs(float(one)))


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]
