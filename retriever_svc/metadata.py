"""A passage's metadata: one JSON object, of no more levels than every reader of it can take."""

from __future__ import annotations

import json
from typing import Any

MOST_LEVELS = 64  # Python's JSON reader gives up at some hundreds to thousands, depending on its version


def parse_metadata(text: str) -> dict[str, Any]:
    """The object in a text. Raises ValueError, which says what is wrong after the name of the field."""
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ValueError(f"is not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    return check_metadata(found)


def check_metadata(value: object) -> dict[str, Any]:
    """The value, if it is an object of few enough levels. Raises ValueError as `parse_metadata`."""
    if not isinstance(value, dict):
        raise ValueError("must be a JSON object")  # noqa: TRY004  (of the content, not of a caller's type)
    if _deeper(value, MOST_LEVELS):
        raise ValueError(TOO_DEEP)
    return value


TOO_DEEP = f"is nested more than {MOST_LEVELS} levels deep"


def _deeper(value: object, levels: int) -> bool:
    """Whether a value has more levels of objects and lists."""
    if not isinstance(value, dict | list):
        return False
    if not levels:
        return True
    return any(_deeper(child, levels - 1) for child in (value.values() if isinstance(value, dict) else value))
