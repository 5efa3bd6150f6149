"""Turns the values of columnar formats and YAML into what JSON can hold.

Decimals become numbers, durations seconds, dates and times ISO 8601, UUIDs and UTF-8 bytes texts. NaN and NaT are
missing values.
"""

from __future__ import annotations

import math
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from ragserve.passage_rules import MAX_METADATA_LEVELS, TOO_DEEP


def plain(value: Any, levels: int = MAX_METADATA_LEVELS + 1) -> Any:  # noqa: PLR0911
    """The value as JSON's null, boolean, number, text, list or object.

    Raises:
        ValueError: it has no such form; the message goes after the name of its column.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, dict | list):
        if not levels:
            raise ValueError(TOO_DEEP)
        if isinstance(value, list):
            return [plain(one, levels - 1) for one in value]
        return {str(key): plain(one, levels - 1) for key, one in value.items()}
    if isinstance(value, float | Decimal):
        return _number(value)
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, date | datetime | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return _number(value.total_seconds())
    if isinstance(value, UUID):
        return str(value)
    raise ValueError(f"holds a {type(value).__name__}, which has no form in JSON")


def _number(value: float | Decimal) -> float | int | None:
    if math.isnan(value):
        return None
    if math.isinf(value):
        raise ValueError("holds an infinite number, which JSON cannot")
    if isinstance(value, float):
        return value
    if value == value.to_integral_value():
        return int(value)
    return float(value)


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError:
        raise ValueError("holds bytes that are not UTF-8 text") from None
