"""Draws docs/growth.svg from the figures of the growth benchmark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.ticker import NullLocator

MARKERS, STYLES = "os^", ("-", "--", ":", "-.")
# Text stays text, and names do not change from run to run.
SVG = {"svg.fonttype": "none", "svg.hashsalt": "ragserve"}


@dataclass(frozen=True)
class Panel:
    """What is varied, and for each precision and figure its points (value, seconds)."""

    name: str
    lines: Mapping[tuple[str, str], Sequence[tuple[float, float]]]


def draw(panels: Sequence[Panel], path: Path, title: str) -> None:
    """A panel for each thing that is varied, log-log: a straight line is a power of it."""
    with mpl.rc_context(SVG):
        figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 4.2), layout="constrained", sharey=True)
        for axis, panel in zip(axes, panels, strict=True):
            names = list(dict.fromkeys(name for _, name in panel.lines))
            precisions = list(dict.fromkeys(precision for precision, _ in panel.lines))
            for (precision, name), points in panel.lines.items():
                rank = names.index(name)
                look = {"marker": MARKERS[rank], "color": f"C{rank}", "linestyle": STYLES[precisions.index(precision)]}
                axis.plot(*zip(*points, strict=True), label=f"{name}, {precision}", **look)
            axis.set(title=panel.name, xscale="log", yscale="log")
            values = sorted({value for points in panel.lines.values() for value, _ in points})
            axis.set_xticks(values, [f"{value:g}" for value in values])
            axis.xaxis.set_minor_locator(NullLocator())
            axis.grid(visible=True, which="both", alpha=0.25)
        axes[0].set_ylabel("seconds")
        axes[0].legend()
        figure.suptitle(title)
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        plt.close(figure)
