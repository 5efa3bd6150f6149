"""Build time, memory, latency and recall of Flat, HNSW and IVF-PQ from 10^4 vectors on: `python -m bench.scale`.

Every index is built in a process of its own and searched in another. Figures are kept as soon as they are there: a run
that was stopped goes on where it was, and `--sizes` and `--kinds` measure a part.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench import CACHE, report
from bench.processes import ROOT, clean_environment
from bench.scale_results import FILE, KINDS, Results, factory
from bench.vectors import Synthetic

SMALLEST = 10_000
BANDWIDTH_BYTES = 2**30  # read again and again: more than any cache holds
PACKAGES = ("ragserve", "faiss-cpu", "numpy")


def sizes_up_to(largest: int) -> list[int]:
    """Powers of ten times the smallest size, then the largest."""
    sizes: list[int] = []
    while SMALLEST * 10 ** len(sizes) < largest:
        sizes.append(SMALLEST * 10 ** len(sizes))
    return [*sizes, largest]


def bandwidth() -> float:
    """Bytes a second that one core reads from memory: products of one vector with a gigabyte of others."""
    rows = np.ones((BANDWIDTH_BYTES // 4 // 1024, 1024), np.float32)
    query, taken = np.ones(1024, np.float32), []
    for _ in range(5):
        begin = time.perf_counter()
        rows @ query
        taken.append(time.perf_counter() - begin)
    return rows.nbytes / min(taken)


def step(name: str, arguments: Sequence[str], threads: int, limit_seconds: float) -> dict[str, Any]:
    """Run one step of a cell; its figures. Raises subprocess's errors when it fails or takes too long."""
    done = subprocess.run(
        [sys.executable, "-m", "bench.scale_cell", name, *arguments],
        cwd=ROOT,
        env=clean_environment(threads),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=limit_seconds,
    )
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def measure(options: argparse.Namespace, kind: str, data: Synthetic) -> dict[str, Any]:
    """Build, then search in a fresh process."""
    name, parameters = factory(kind, data.size)
    with tempfile.TemporaryDirectory(dir=CACHE, prefix="scale-") as directory:
        arguments = ["--factory", name, "--parameters", parameters, "--size", str(data.size)]
        arguments += ["--dimension", str(data.dimension), "--queries", str(data.n_queries)]
        arguments += ["--threads", str(options.threads), "--seconds", str(options.timing_seconds)]
        arguments += ["--file", str(Path(directory) / "index.faiss")]
        built = step("build", arguments, options.threads, options.build_limit)
        print(f"  built in {built['build_seconds']:.1f} s", flush=True)
        searched = step("search", arguments, 1, options.build_limit)
    about = report.environment(options.threads, report.installed(PACKAGES))
    spec = {"kind": kind, "size": data.size, "dimension": data.dimension, "factory": name, "parameters": parameters}
    return {**spec, **built, **searched, **about}


def too_long(results: Results, kind: str, size: int, limit_seconds: float) -> str:
    """Why a build is not begun: it would take longer than allowed, as the smaller sizes say; empty if it is."""
    smaller = [cell for cell in results.of(kind) if cell["size"] < size]
    if not smaller:
        return ""
    last = smaller[-1]
    growth = 1.5 if kind == "IVF-PQ" else 1.15  # n vectors are compared with sqrt(n) cells; a graph grows by n log n
    expected = last["build_seconds"] * (size / last["size"]) ** growth
    return f"about {expected:.0f} s expected, --build-limit is {limit_seconds:.0f}" if expected > limit_seconds else ""


def run(options: argparse.Namespace, results: Results) -> None:
    """Measure what is missing, the small sizes first."""
    for size in options.sizes or sizes_up_to(options.max):
        todo = [kind for kind in options.kinds if options.again or results.cell(kind, size) is None]
        data = Synthetic(size, options.dimension, options.queries)
        if todo:
            print(f"{size:,} x {options.dimension}: making vectors, queries and exact neighbours", flush=True)
            data.make()
        for kind in todo:
            reason = too_long(results, kind, size, options.build_limit)
            print(f"{size:,} {kind}: {f'skipped, {reason}' if reason else 'measuring'}", flush=True)
            if not reason:
                results.put(measure(options, kind, data))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale", description=__doc__)
    parser.add_argument("--max", type=int, default=1_000_000, help="largest size (default 1000000)")
    parser.add_argument("--sizes", type=int, nargs="+", help="just these sizes")
    parser.add_argument("--kinds", choices=KINDS, nargs="+", default=list(KINDS), help="just these (default all)")
    parser.add_argument("--dimension", type=int, default=768, help="a multiple of 96 (default 768)")
    parser.add_argument("--queries", type=int, default=1_000, help="queries (default 1000)")
    parser.add_argument("--threads", type=int, default=2, help="threads of a build (default 2); searches have one")
    parser.add_argument("--timing-seconds", type=float, default=60.0, help="bound of one timing (default 60)")
    parser.add_argument("--build-limit", type=float, default=7_200.0, help="longest step, seconds (default 7200)")
    parser.add_argument("--again", action="store_true", help="measure again what is in the file already")
    parser.add_argument("--out", type=Path, default=FILE, help=f"the file (default {FILE.relative_to(ROOT)})")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and keep; `python -m bench.plots` draws."""
    options = arguments(argv)
    CACHE.mkdir(parents=True, exist_ok=True)
    results = Results.read(options.out)
    if options.again or "read_bytes_per_second" not in results.machine:
        results.machine = {"cpu": report.cpu_name(), "read_bytes_per_second": bandwidth()}
        results.save()
    run(options, results)
    print(f"figures are in {options.out}; python -m bench.plots draws them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
