"""Text for narrow places."""

from __future__ import annotations

EXCERPT = 160  # characters of a passage in a table


def excerpt(text: str) -> str:
    """The beginning of a passage."""
    return text if len(text) <= EXCERPT else text[: EXCERPT - 1].rstrip() + "…"
