"""Checks what callers pass: each error names the argument or field, and shows the value."""

from __future__ import annotations

import math
import operator
import reprlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields
from numbers import Real
from typing import Any, TypeVar

from ragserve.errors import InvalidInputError

LARGEST_FLOAT32 = (2 - 2**-23) * 2.0**127
LARGEST_UINT32 = 2**32 - 1
LARGEST_UINT64 = 2**64 - 1
LONGEST_TIMEOUT_SECONDS = 10.0**9  # gRPC lets calls fail at once with far longer ones

T = TypeVar("T")

_shortened = reprlib.Repr()
_shortened.maxstring = _shortened.maxother = _shortened.maxlong = 80


def shown(value: Any) -> str:
    """A value for an error: one line, short, whatever its `repr` does."""
    if is_numpys(value, "ndarray"):
        return f"an array of {value.dtype} with the shape {value.shape}"
    if isinstance(value, bytes | bytearray):
        return f"{_shortened.repr(bytes(value[:80]))} (bytes)"
    try:
        text = _shortened.repr(value)
    except Exception:  # an int of too many digits, or the caller's own `__repr__`
        return f"a value of type {type(value).__name__}"
    return " ".join(text.encode("utf-8", "backslashreplace").decode().split())


def refused(field: str, name: str, value: object, wanted: str) -> InvalidInputError:
    """The error of an argument. `field` is its place in the request, `name` what the caller knows it as."""
    if value is None:
        return InvalidInputError(field, f"{name} is missing; it must be {wanted}")
    return InvalidInputError(field, f"{name} is {shown(value)}; it must be {wanted}")


def text(field: str, name: str, value: object) -> str:
    """A text that UTF-8 can hold."""
    if not isinstance(value, str):
        hint = "a text; decode bytes first" if isinstance(value, bytes | bytearray) else "a text"
        raise refused(field, name, value, hint)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            field,
            f"{name} has a lone surrogate ({shown(value[error.start])}) at character {error.start}, which UTF-8 cannot "
            "hold; decode its bytes with errors='replace'",
        ) from error
    return str(value)


def whole(field: str, name: str, value: object, most: int, least: int = 0) -> int:
    """A whole number within bounds. True is none, and neither is 5.0; integers of numpy are."""
    bounds = f"a whole number from {least} to {most}"
    # The largest number of the wire is not the limit that counts, which the service knows.
    wanted = "a whole number" if most in (LARGEST_UINT32, LARGEST_UINT64) else bounds
    if _is_bool(value) or not hasattr(value, "__index__"):
        raise refused(field, name, value, wanted)
    try:
        number = operator.index(value)
    except TypeError as error:  # an array
        raise refused(field, name, value, wanted) from error
    if number < least and wanted != bounds:
        raise refused(field, name, value, f"{wanted}, {least} or more")
    if not least <= number <= most:
        raise refused(field, name, value, bounds)
    return number


def number(field: str, name: str, value: object, most: float = math.inf) -> float:
    """A finite number whose size is at most `most`. Numbers of numpy are taken, texts and booleans are not."""
    if _is_bool(value) or not isinstance(value, Real):
        raise refused(field, name, value, "a number")
    try:
        found = float(value)
    except OverflowError:
        found = math.inf
    if not math.isfinite(found):
        raise refused(field, name, value, "a finite number")
    if abs(found) > most:
        raise refused(field, name, value, f"a number whose size is at most {most:.3g}")
    return found


def check_range(
    field: str,
    value: float,
    least: float | None = None,
    most: float | None = None,
    *,
    above: float | None = None,
    why: str = "",
) -> None:
    """Raises InvalidInputError unless a number is finite and within its bounds. `why`: their reason, or advice."""

    def fits(number: float) -> bool:
        low = (least is None or number >= least) and (above is None or number > above)
        return low and (most is None or number <= most) and -math.inf < number < math.inf

    if fits(value):
        return
    given = _digits(value)
    if isinstance(value, float) and fits(float(given)):  # as 1.00000001, where 1 is allowed
        given = repr(value)
    raise InvalidInputError(field, f"{field} is {given}; it must be {_bounds(least, most, above)}{why and f': {why}'}")


def _bounds(least: float | None, most: float | None, above: float | None) -> str:
    if least is not None and most is not None:
        return _digits(least) if least == most else f"between {_digits(least)} and {_digits(most)}"
    bounds = {"at least": least, "above": above, "at most": most}
    wanted = [f"{name} {_digits(bound)}" for name, bound in bounds.items() if bound is not None]
    return " and ".join(wanted) or "a finite number"


def _digits(number: float) -> str:
    """A number as a person writes it, also where float32 holds it."""
    return f"{number:.7g}" if isinstance(number, float) else shown(number)


def plain(value: Any) -> Any:
    """A scalar of numpy as Python's own; everything else as it is."""
    if is_numpys(value, "datetime64"):
        return value.astype("datetime64[us]").item()  # nanoseconds would become an int
    return value.item() if is_numpys(value, "generic") else value


def is_numpys(value: object, cls: str) -> bool:
    """Whether a value is of this class of numpy, which need not be loaded: then there is no such value."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, getattr(numpy, cls))


def _is_bool(value: object) -> bool:
    return isinstance(value, bool) or is_numpys(value, "bool_")


def flag(field: str, name: str, value: object) -> bool:
    """True or False; numpy's too."""
    if not _is_bool(value):
        raise refused(field, name, value, "True or False")
    return bool(value)


def items(field: str, name: str, value: Any, what: str) -> Iterator[Any]:
    """An iterator over several things. What the caller's own iterable raises later passes unchanged.

    A text, or a mapping, is one thing and not several.
    """
    if isinstance(value, str | bytes | bytearray | Mapping):
        raise refused(field, name, value, f"an iterable of {what}; for a single one write [...]")
    if (is_numpys(value, "ndarray") and not value.ndim) or not isinstance(value, Iterable):
        raise refused(field, name, value, f"an iterable of {what}")
    return iter(value)


def chosen(field: str, name: str, value: object, known: Mapping[Any, T]) -> T:
    """What stands for one of the known values. 0 and 1 are not False and True here."""
    if isinstance(value, str | bool) and value in known:
        return known[value]
    raise refused(field, name, value, f"one of {', '.join(map(repr, known))}")


def record(field: str, name: str, cls: type[T], value: Any) -> T:
    """A dataclass, given as itself or as a mapping of its fields."""
    if isinstance(value, cls):
        return value
    if not hasattr(value, "keys"):
        raise refused(field, name, value, f"a {cls.__name__} or a mapping")
    known = {one.name for one in fields(cls)}  # type: ignore[arg-type]
    values = dict(value)
    for key in values:
        if key not in known:
            more = ". Put further values into metadata" if "metadata" in known else ""
            raise InvalidInputError(field, f"{name}: unknown key {key!r}; it may have {', '.join(sorted(known))}{more}")
    try:
        return cls(**values)
    except TypeError as error:
        missing = next((one.name for one in fields(cls) if one.name not in values), "")  # type: ignore[arg-type]
        raise InvalidInputError(f"{field}.{missing}", f"{name}.{missing} is missing") from error


def seconds(name: str, value: object) -> float | None:
    """A deadline in seconds, above 0; None, or more than 30 years, for none."""
    if value is None:
        return None
    given: Any = value
    if _is_bool(value) or not isinstance(value, Real) or not given > 0:
        raise refused(name, name, value, "a number of seconds above 0")
    return float(given) if given < LONGEST_TIMEOUT_SECONDS else None


def function(name: str, value: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """Something that can be called, or None."""
    if value is not None and not callable(value):
        raise refused(name, name, value, "a function")
    return value
