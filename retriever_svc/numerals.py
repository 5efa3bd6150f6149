"""JSON numbers by their exact value, as metadata and filters write them."""

from __future__ import annotations

import re
from decimal import Decimal

# JSON's grammar: 007, +1 and .5 are texts. A longer exponent is beyond what `Decimal` can compare.
NUMBER = r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]{1,9})?"
_NUMBER = re.compile(NUMBER)


def number_of(text: str) -> Decimal | None:
    """The number that a text reads as, or None."""
    return Decimal(text) if _NUMBER.fullmatch(text) else None
