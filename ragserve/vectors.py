"""Vectors that callers pass to the clients, as the services read them."""

from __future__ import annotations

from typing import Any

import numpy as np

from ragserve.errors import InvalidInputError


def vector_bytes(field: str, value: Any) -> bytes:
    """A vector of finite numbers as float32 in little-endian order."""
    try:
        given = np.asarray(value)
    except Exception as error:  # whatever the caller's object does when numpy asks for its numbers
        raise InvalidInputError(field, f"{field} is no vector of numbers: give an array or a flat list") from error
    if given.dtype.kind not in "fiu":
        raise InvalidInputError(field, f"{field} has elements of type {given.dtype}; it must have numbers")
    if given.ndim != 1 or not len(given):
        raise InvalidInputError(
            field, f"{field} has the shape {given.shape}; it must have one dimension and at least one element"
        )
    with np.errstate(over="ignore"):
        values = given.astype("<f4")
    finite = np.isfinite(values)
    if not finite.all():
        first = int(np.argmin(finite))
        raise InvalidInputError(
            field, f"{field}[{first}] is {given[first]!s}; every element must be finite and within float32"
        )
    return values.tobytes()
