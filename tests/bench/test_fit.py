"""Lines through figures, and quantiles."""

from __future__ import annotations

import random

import numpy as np
import pytest

from bench.fit import growth, line, quantile


def test_a_line_is_that_of_numpy() -> None:
    rng = random.Random(0)
    x = [rng.uniform(1, 50) for _ in range(20)]
    y = [7.0 + 2.5 * value + rng.gauss(0, 3) for value in x]
    assert line(x, y) == pytest.approx(np.polyfit(x, y, 1).tolist())


def test_a_straight_line_and_a_power_are_found() -> None:
    x = [1.0, 2.0, 5.0, 10.0, 50.0]
    found = growth(x, [3.0 + 0.5 * value for value in x])
    assert (found.slope, found.at_zero) == pytest.approx((0.5, 3.0))
    assert 0 < found.exponent < 1  # the part that does not grow hides the rest
    assert growth(x, [4.0 * value**1.5 for value in x]).exponent == pytest.approx(1.5)


@pytest.mark.parametrize(("x", "y"), [([2.0, 2.0], [1.0, 3.0]), ([1.0, 2.0], [0.0, 3.0]), ([0.0, 2.0], [1.0, 3.0])])
def test_what_no_line_goes_through_is_refused(x: list[float], y: list[float]) -> None:
    with pytest.raises(ValueError, match="needs"):
        growth(x, y)


def test_quantiles_do_not_depend_on_the_order() -> None:
    values = [float(value) for value in range(200)]
    random.Random(1).shuffle(values)
    assert (quantile(values, 0.5), quantile(values, 0.99), quantile(values, 1.0)) == (100.0, 198.0, 199.0)
    assert quantile([3.0], 0.99) == 3.0
