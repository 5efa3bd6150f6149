"""Quantiles, and how a figure grows: least squares, as it is and on log-log paper."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Growth:
    """A figure y over x: y = at_zero + slope * x, and y ~ x ** exponent."""

    slope: float
    at_zero: float
    exponent: float


def growth(x: Sequence[float], y: Sequence[float]) -> Growth:
    """Both lines by least squares.

    Raises:
        ValueError: fewer than two different x, or a value that is not above 0.
    """
    if len(set(x)) < 2:
        raise ValueError("a line needs two different points")
    if min(*x, *y) <= 0:
        raise ValueError("log-log needs values above 0")
    slope, at_zero = line(x, y)
    return Growth(slope, at_zero, line(np.log(x).tolist(), np.log(y).tolist())[0])


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Slope and value at 0 of the line with the least squared distance to y."""
    center = sum(x) / len(x)
    slope = sum((a - center) * b for a, b in zip(x, y, strict=True)) / sum((a - center) ** 2 for a in x)
    return slope, sum(y) / len(y) - slope * center


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
