"""Makes text from outside harmless for a terminal or a log: what is shown cannot move the cursor or hide text."""

from __future__ import annotations

import json
import re
from typing import Any

# C0 and C1 control characters except tab and line feed, DEL, characters that change the direction of text, line
# separators that only some programs know, and halves of surrogate pairs, which no encoding can write.
_UNSAFE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """The text with hexadecimal escapes in place of control characters; tabs and line feeds stay."""
    return _UNSAFE.sub(_escape, text)


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number with its noun: 1 passage, 2 passages. `plural` is needed where it is not the noun and an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def masked(text: str) -> str:
    """The text with a replacement character for each control character: as long as before."""
    return _UNSAFE.sub("\ufffd", text)


def to_json(value: Any) -> str:
    """One line of JSON without control characters. A parser gives back exactly the value."""
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", json.dumps(value, ensure_ascii=False))


def _escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
