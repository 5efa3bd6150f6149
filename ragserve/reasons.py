"""What errors of libraries say, in words for users: without Python's classes and the library's own source files."""

from __future__ import annotations

import json
import re

MOST_CHARACTERS = 200
# What stands in the text of an error, and what it means for the data.
MEANINGS = (
    ("set_int_max_str_digits", "a number has more than 4,300 digits"),
    ("year .*out of range|date value out of range|days=.*magnitude", "a time is out of range"),
    ("too large to convert", "a number or time is out of range"),
    ("maximum recursion depth", "it is nested too deeply"),
    ("ot a gzipped file", "its name ends in .gz, and it is not gzipped"),
    ("end-of-stream marker", "it ends early"),
    ("while decompressing data|CRC check failed|ncorrect length of data", "its compressed data are damaged"),
    ("expected after '\"'", "something follows the quote that ends a text"),
    ("unexpected end of data", "a quote has no end"),
)
# Classes and places in the source of libraries in Rust (Lance) and C++ (FAISS).
SOURCE = re.compile(
    r"\bLanceError\(\w+\): |,? \(?[\w./-]+\.rs:\d+(?::\d+)?\)?|^Error in .*?\.(?:cpp|h|cu|cuh):\d+: (?:Error: )?",
    re.DOTALL,
)
# What these say is about Python code, not about the data that it fails over.
OF_CODE = (AttributeError, AssertionError, IndexError, KeyError, NameError, ZeroDivisionError)
ABOUT_CODE = re.compile(r"'\w+' object|\w\(\) |unsupported operand|not supported between|indices must be|unhashable")


def reason_of(error: BaseException, otherwise: str = "it is damaged") -> str:
    """One short line that goes on after a colon; `otherwise` where the error says nothing of use."""
    text = str(error)
    if isinstance(error, json.JSONDecodeError) and error.lineno == 1:
        text = f"{error.msg} at character {error.colno}"
    for pattern, meaning in MEANINGS:
        if re.search(pattern, text, re.DOTALL):
            return meaning
    text = " ".join(SOURCE.sub("", text).split())
    if not text or isinstance(error, OF_CODE) or (isinstance(error, TypeError) and ABOUT_CODE.search(text)):
        return otherwise
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"
