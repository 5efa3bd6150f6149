"""The retriever's figures beside each peer's, and whether the targets are met."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bench.turns import Measured

OURS, SAME_PARTS, BARE = "ragserve", "in-process", "in-process behind bare gRPC"
LEAST_THROUGHPUT = 0.85  # of the same ONNX session and FAISS index called in-process
MOST_ADDED_SECONDS = 0.002  # at the median above them, one question at a time
HEAD = ("queries", "load", "peer", "unit", "ragserve", "peer's", "ragserve is faster by", "target", "same passages")


def verdict_table(results: Sequence[Measured]) -> str:
    """One row for each load and peer: medians of the rounds. The factor is above 1 where ragserve is the faster."""
    rows = [row(measured, peer) for measured in results for peer in measured.values if peer != OURS]
    rule = ["---"] * 4 + ["---:"] * 3 + ["---"] * 2
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (HEAD, rule, *rows)) + "\n"


def row(measured: Measured, peer: str) -> list[str]:
    """One line of the table."""
    ours, theirs = measured.median(OURS), measured.median(peer)
    if measured.load.latency:
        unit, cells, factor = "p50, ms", [f"{1000 * ours:.2f}", f"{1000 * theirs:.2f}"], theirs / ours
    else:
        unit, cells, factor = "queries/s", [f"{ours:.0f}", f"{theirs:.0f}"], ours / theirs
    return [
        measured.queries,
        measured.load.name,
        peer,
        unit,
        *cells,
        f"{factor:.2f}×",
        target(measured, peer),
        agreement(measured, peer),
    ]


def target(measured: Measured, peer: str) -> str:
    """What is required beside the same parts asked the same texts, and whether it is so; nothing for the others."""
    if (measured.queries, peer) != ("text", SAME_PARTS):
        return ""
    ours, theirs = measured.median(OURS), measured.median(peer)
    if measured.load.latency:
        met, said = ours - theirs <= MOST_ADDED_SECONDS, f"≤ 2 ms above: {1000 * (ours - theirs):+.2f} ms"
    else:
        met, said = ours / theirs >= LEAST_THROUGHPUT, f"≥ {LEAST_THROUGHPUT}×"
    return f"{said}, {'met' if met else 'NOT MET'}"


def agreement(measured: Measured, peer: str) -> str:
    """How far both found the same."""
    if measured.same(OURS, peer):
        return "yes, in order"
    return f"{100 * measured.overlap(OURS, peer):.1f} %"


def stages_table(stages: Mapping[str, float]) -> str:
    """Where the time of one question goes, medians in milliseconds."""
    cells = (list(stages), ["---:"] * len(stages), [f"{1000 * seconds:.2f}" for seconds in stages.values()])
    table = "\n".join(f"| {' | '.join(row)} |" for row in cells)
    return f"Where the time of one question goes (medians, ms):\n\n{table}\n"
