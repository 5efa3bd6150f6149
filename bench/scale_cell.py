"""One index of one size, measured in a process of its own: `python -m bench.scale_cell build|search ...`.

`build` makes the index as the retriever does and writes it to a file; `search` reads that file in a fresh process, so
that what it holds is the index and nothing left over from building. Both print one JSON object.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.proc import memory
from bench.vectors import N_NEIGHBOURS, Synthetic
from retriever_svc.index import FaissIndex, IndexSpec
from retriever_svc.ranking import find_nearest

WARM_UP = 20  # queries before anything is timed
FEWEST_TIMED = 200  # queries, however slow
WIDE = 100  # candidates that a wider search ranks


def build(data: Synthetic, spec: IndexSpec, path: Path) -> dict[str, Any]:
    """Seconds to build, memory afterwards and at the peak, size of the file."""
    _ = data.mapped.shape
    before, begin = memory("RssAnon"), time.perf_counter()
    index = FaissIndex.build(data, spec)
    seconds = time.perf_counter() - begin
    figures = {
        "build_seconds": seconds,
        "built_rss_bytes": memory("RssAnon") - before,
        "build_peak_bytes": memory("VmHWM"),
    }
    index.write(path)
    return {**figures, "file_bytes": path.stat().st_size}


def search(data: Synthetic, spec: IndexSpec, path: Path, seconds: float) -> dict[str, Any]:
    """Memory of the index, latencies one query at a time, and recall; `seconds` bounds each timing."""
    before, begin = memory("RssAnon"), time.perf_counter()
    index = FaissIndex.read(path, spec)
    loading = time.perf_counter() - begin
    resident = memory("RssAnon") - before
    data.vectors(data.neighbours.reshape(-1))  # what re-ranking reads is in the page cache, as in a service's memory
    served, found = timed(lambda query: find_nearest(index, data, query, N_NEIGHBOURS)[0][0], data, seconds)
    alone, _ = timed(lambda query: index.search(query, N_NEIGHBOURS)[1][0], data, seconds)
    wide = [find_nearest(index, data, query[None], WIDE)[0][0][:N_NEIGHBOURS] for query in data.queries[: len(found)]]
    return {
        "load_seconds": loading,
        "rss_bytes": resident,
        "timed_queries": len(served),
        "p50_seconds": statistics.median(served),
        "p99_seconds": float(np.quantile(served, 0.99)),
        "index_p50_seconds": statistics.median(alone),
        "recall_at_10": recall(data, found),
        "recall_at_10_of_100_ranked": recall(data, wide),
    }


def timed(
    call: Callable[[np.ndarray[Any, Any]], Any], data: Synthetic, seconds: float
) -> tuple[list[float], list[Any]]:
    """Seconds and answers of single queries [1, dim]: all of them, or as many as fit, but never too few for a p99."""
    for query in data.queries[:WARM_UP]:
        call(query[None])
    taken, answers = list[float](), []
    for query in data.queries:
        begin = time.perf_counter()
        answers.append(call(query[None]))
        taken.append(time.perf_counter() - begin)
        if sum(taken) > seconds and len(taken) >= FEWEST_TIMED:
            break
    return taken, answers


def recall(data: Synthetic, found: Sequence[Sequence[int]]) -> float:
    """Which part of the ten true nearest was found, over these first queries."""
    hits = sum(len(set(map(int, row)) & set(true.tolist())) for row, true in zip(found, data.neighbours, strict=False))
    return hits / (N_NEIGHBOURS * len(found))


def main(argv: Sequence[str] | None = None) -> int:
    """Do one step and print its figures."""
    parser = argparse.ArgumentParser(prog="python -m bench.scale_cell", description=__doc__)
    parser.add_argument("step", choices=("build", "search"))
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--dimension", type=int, required=True)
    parser.add_argument("--queries", type=int, required=True)
    parser.add_argument("--factory", required=True)
    parser.add_argument("--parameters", default="")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--file", type=Path, required=True)
    chosen = parser.parse_args(argv)
    data = Synthetic(chosen.size, chosen.dimension, chosen.queries)
    spec = IndexSpec(chosen.factory, chosen.parameters, "cpu", threads=1, build_threads=chosen.threads)
    if chosen.step == "build":
        print(json.dumps(build(data, spec, chosen.file)))
    else:
        print(json.dumps(search(data, spec, chosen.file, chosen.seconds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
