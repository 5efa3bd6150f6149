"""The settings, lines and tables of the growth benchmark, and the search it drives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from bench import growth_plot
from bench.beams import best_continuations
from bench.growth import AXES, Point, Setting, lines, on_axis, slopes_table, thinned


def points() -> list[Point]:
    """A prefill of 2 ms for each document of 160 tokens of each session, a step of 3 ms for each beam."""
    settings = {Setting(), *(one for axis in AXES for one in axis.settings(99))}
    found = []
    for one in settings:
        prefill, step = 0.002 * one.documents * one.tokens / 160 * one.sessions, 0.003 * one.beams
        found.append(Point("int8", one, prefill, step, prefill + 19 * step))
    return found


def test_thinning_keeps_the_ends() -> None:
    values = (1, 2, 4, 8, 16, 32, 64)
    assert thinned(values, 2) == [1, 64]
    assert thinned(values, 3) == [1, 8, 64]
    assert thinned(values, 7) == thinned(values, 99) == list(values)


def test_every_axis_has_its_own_points_and_the_base() -> None:
    for axis in AXES:
        own = on_axis(axis, points())
        assert [axis.value(one) for one in own] == list(axis.values)
        assert Setting() in [one.setting for one in own]
        others = {replace(one.setting, **{axis.name: 0}) for one in own}
        assert others == {replace(Setting(), **{axis.name: 0})}


def test_slopes_are_in_milliseconds_for_each_unit() -> None:
    table = slopes_table(points())
    row = {line.split(" | ")[1]: line.strip("| ").split(" | ")[2:] for line in table.splitlines()[2:]}
    assert [float(cell) for cell in row["document"]][:5] == pytest.approx([2.0, 1.0, 0.0, 0.0, 2.0])
    assert [float(cell) for cell in row["beam"]][2:5] == pytest.approx([3.0, 1.0, 57.0])
    assert [float(cell) for cell in row["100 tokens"]][:2] == pytest.approx([6.25, 1.0])
    assert [float(cell) for cell in row["session"]][:2] == pytest.approx([10.0, 1.0])


@pytest.mark.long
def test_the_picture_is_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a.svg", "b.svg"):
        growth_plot.draw(lines(points()), tmp_path / name, "a title")
    first = (tmp_path / "a.svg").read_bytes()
    assert first == (tmp_path / "b.svg").read_bytes()
    assert all(axis.name.encode() in first for axis in AXES)


def test_the_best_continuations_are_those_of_the_marginal() -> None:
    log_probs = np.log(np.array([[[0.6, 0.1], [0.1, 0.7]], [[0.5, 0.2], [0.5, 0.1]]], np.float32))
    ids = np.array([[7, 8], [5, 9]], np.int32)
    totals = np.log([0.5, 0.4])
    choices, grown = best_continuations(totals, ids, log_probs, np.log([0.75, 0.25]).tolist(), 2)
    assert choices == [(0, 7), (1, 5)]  # 0.5 x 0.475 and 0.4 x 0.5
    assert np.exp(grown) == pytest.approx([0.2375, 0.2])
