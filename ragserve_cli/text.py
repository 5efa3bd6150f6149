"""Text that is typed, and text cut to the width of the terminal."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size

from ragserve.printable import printable

LEAD = 0.4  # part of an excerpt that may stand before the words it shows
ELLIPSIS = "…"
LEAST_SHOWN = 1e-6  # a smaller probability is shown as below that


def is_utf8(text: str) -> bool:
    """Whether a text that was typed is UTF-8. A shell passes other bytes as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def percent(probability: float) -> str:
    """A probability as a percentage with a digit after the point, a small one with two significant digits."""
    if 0 < probability < LEAST_SHOWN:
        return f"<{LEAST_SHOWN * 100:g}%"
    return f"{probability * 100:.2g}%" if 0 < probability < 0.01 else f"{probability:.1%}"


def excerpt(text: str, cells: int, around: str = "") -> str:
    """A part of a text in one line of at most `cells` terminal cells, which shows `around` where the text holds it."""
    line = " ".join(printable(text).split())
    if cell_len(line) <= cells:
        return line
    start = _start(line, cells, around)
    lead = ELLIPSIS if start else ""
    room = max(1, cells - cell_len(lead))
    rest = line[start:]
    if cell_len(rest) <= room:
        return lead + rest
    return lead + set_cell_size(rest, room - 1).rstrip() + ELLIPSIS


def _start(line: str, cells: int, around: str) -> int:
    """Where the excerpt begins: at the beginning, unless `around` would then be cut off."""
    found = line.casefold().find(around.casefold()) if around else -1
    if found < 0 or len(line.casefold()) != len(line) or cell_len(line[: found + len(around)]) < cells:
        return 0
    start = max(0, found - int(cells * LEAD))
    space = line.find(" ", start, found)
    return space + 1 if space >= 0 else start
