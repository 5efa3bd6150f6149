"""The precisions that a query encoder is written in, and the files that hold them. Loads no other library."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from ragserve.errors import InvalidInputError

Precision = Literal["int8", "float16"]
PRECISIONS: tuple[Precision, ...] = ("int8", "float16")


def graph_name(precision: Precision) -> str:
    """The file that holds the graph of a precision, next to `model.onnx`, which is float32."""
    return f"model.{precision}.onnx"


def check_precisions(precisions: Iterable[str]) -> None:
    """Refuse what is no precision to convert to.

    Raises:
        InvalidInputError: one is not known.
    """
    for precision in precisions:
        if precision not in PRECISIONS:
            raise InvalidInputError(
                "encoder_precision", f"encoder_precision is {precision!r}; it must be one of {', '.join(PRECISIONS)}"
            )
