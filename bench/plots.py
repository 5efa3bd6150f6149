"""Draws docs/scale.png and fills the tables of docs/scale.md from the figures of the scale benchmark."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

from bench import scale_paper
from bench.processes import ROOT
from bench.report import markdown
from bench.scale_results import FILE, KINDS, Results

mpl.use("Agg")
from matplotlib import pyplot as plt

PLOT, PAGE = ROOT / "docs/scale.png", ROOT / "docs/scale.md"
MIB = 2**20
Figure = Callable[[Mapping[str, Any]], float]


@dataclass(frozen=True)
class Panel:
    """One figure against the size."""

    title: str
    figure: Figure
    logarithmic: bool = True


def per_vector(name: str) -> Figure:
    """Bytes for each vector."""
    return lambda cell: float(cell[name]) / float(cell["size"])


PANELS = (
    Panel("build time, s", lambda cell: cell["build_seconds"]),
    Panel("memory per vector, bytes (resident)", per_vector("rss_bytes")),
    Panel("p50, ms, one query", lambda cell: 1000 * cell["p50_seconds"]),
    Panel("p99, ms, one query", lambda cell: 1000 * cell["p99_seconds"]),
    Panel("recall@10", lambda cell: cell["recall_at_10"], logarithmic=False),
)
HEAD = ["index", "vectors", "factory", "build, s", "bytes a vector: file", "resident", "p50, ms", "p99, ms"]
HEAD += ["recall@10", "of 108 candidates"]


def draw(results: Results, path: Path) -> None:
    """One panel for each figure, a line for each kind of index."""
    figure, axes = plt.subplots(2, 3, figsize=(13, 7.5), layout="constrained")
    for axis, panel in zip(axes.flat, PANELS, strict=False):
        for kind, marker in zip(KINDS, "os^", strict=True):
            measured = results.of(kind)
            sizes = [cell["size"] for cell in measured]
            axis.plot(sizes, [panel.figure(cell) for cell in measured], marker=marker, label=kind)
        axis.set(title=panel.title, xlabel="vectors", xscale="log")
        axis.set_yscale("log" if panel.logarithmic else "linear")
        axis.grid(visible=True, which="both", alpha=0.25)
    legend = axes.flat[-1]
    legend.axis("off")
    legend.legend(*axes.flat[0].get_legend_handles_labels(), loc="center", title="768 dimensions", fontsize=13)
    figure.savefig(path, dpi=110, metadata={"Software": ""})
    plt.close(figure)


def measured_table(results: Results) -> str:
    """Every cell measured."""
    rows = [
        [
            kind,
            f"{cell['size']:,}",
            " ".join(filter(None, (cell["factory"], cell["parameters"]))),
            f"{cell['build_seconds']:.2f}",
            f"{cell['file_bytes'] / cell['size']:,.0f}",
            f"{cell['rss_bytes'] / cell['size']:,.0f}",
            f"{1000 * cell['p50_seconds']:.2f}",
            f"{1000 * cell['p99_seconds']:.2f}",
            f"{cell['recall_at_10']:.3f}",
            f"{cell['recall_at_10_of_100_ranked']:.3f}",
        ]
        for kind in KINDS
        for cell in results.of(kind)
    ]
    return markdown(HEAD, rows)


def growth_table(results: Results) -> str:
    """The exponent p of each figure ~ size ** p, from the smallest to the largest size."""

    def cell(kind: str, panel: Panel) -> str:
        slope = results.slope(kind, panel.figure)
        return "—" if slope is None else f"{slope:.2f}"

    rows = [[kind, *(cell(kind, panel) for panel in PANELS)] for kind in KINDS]
    return markdown(["index", *(panel.title.partition(",")[0] for panel in PANELS)], rows)


def machine_line(results: Results) -> str:
    """Where it was measured."""
    cells = [cell for kind in KINDS for cell in results.of(kind)]
    if not cells:
        return "Nothing measured yet."
    newest, read = max(cells, key=lambda cell: str(cell["date"])), results.machine["read_bytes_per_second"]
    return (
        f"{newest['cpu']}, {newest['cores']} cores, builds with {newest['threads']} threads, searches with one; "
        f"one core reads {read / 1e9:.1f} GB/s; FAISS {newest.get('faiss-cpu', '')}; commit {newest['commit']}, "
        f"{str(newest['date'])[:10]}."
    )


def sections(results: Results) -> dict[str, str]:
    """The parts of the page that are not written by hand."""
    cpu = ["layout", "bytes a vector", "=", "GB", "one core's memory", "307 GB/s", "p50, slope", "build, slope"]
    gpu = ["layout", "GB", *(gpu.name for gpu in scale_paper.GPUS)]
    return {
        "machine": machine_line(results),
        "measured": measured_table(results),
        "growth": growth_table(results),
        "cpu": markdown(cpu, scale_paper.memory_rows(results), 2),
        "gpu": markdown(gpu, scale_paper.gpu_rows()),
        "beside": markdown(["what", "bytes a passage", "where", "GB"], scale_paper.disk_rows()),
    }


def fill(page: str, parts: Mapping[str, str]) -> str:
    """The page with the text between `<!-- NAME -->` and `<!-- /NAME -->` replaced.

    Raises:
        ValueError: a part has no place in the page.
    """
    for name, text in parts.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        page, found = pattern.subn(lambda match, text=text: f"{match[1]}{text}\n{match[2]}", page)  # type: ignore[misc]
        if found != 1:
            raise ValueError(f"the page has {found} places for {name}: it must have one, <!-- {name} -->")
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """Draw and fill."""
    parser = argparse.ArgumentParser(prog="python -m bench.plots", description=__doc__)
    parser.add_argument("--results", type=Path, default=FILE, help=f"the figures (default {FILE.relative_to(ROOT)})")
    parser.add_argument("--plot", type=Path, default=PLOT, help=f"the picture (default {PLOT.relative_to(ROOT)})")
    parser.add_argument("--page", type=Path, default=PAGE, help=f"the page (default {PAGE.relative_to(ROOT)})")
    options = parser.parse_args(argv)
    results = Results.read(options.results)
    draw(results, options.plot)
    options.page.write_text(fill(options.page.read_text(encoding="utf-8"), sections(results)), encoding="utf-8")
    print(f"wrote {options.plot} and {options.page}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
