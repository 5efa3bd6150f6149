"""The retriever over gRPC against its parts called in-process, Milvus Lite and bm25s: `python -m bench.retrieval`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench import CACHE, processes, report
from bench.milvus_lite import MilvusLite, MilvusServer
from bench.questions import questions
from bench.retrieval_report import BARE, stages_table, verdict_table
from bench.sides import Asked, Bm25s, InProcess, Ragserve, Side
from bench.turns import Load, Measured, one_round
from ragserve.v1 import common_pb2

MODEL, KNOWLEDGE = Path("demo/model"), Path("demo/kb")
K = 5
LOADS = (
    Load("one at a time", latency=True),
    Load("16 clients, 1 query a request", 1, 16),
    Load("2 clients, 16 queries a request", 16, 2),
    Load("2 clients, 64 queries a request", 64, 2),
)
WARM_UP = 64  # queries under every load before anything is measured
DEVICE_PACKAGES = ("onnxruntime", "faiss-cpu", "onnxruntime-gpu", "faiss-gpu")
PACKAGES = ("ragserve", "grpcio", "numpy", *DEVICE_PACKAGES, "pymilvus", "milvus-lite", "bm25s")


@dataclass
class Group:
    """Sides that are asked the same queries, and what was measured."""

    kind: str
    asked: Sequence[Asked]
    sides: Sequence[Side]
    measured: list[Measured] = field(default_factory=list)

    def round(self, turn: int) -> None:
        """Every side answers every query once under each load."""
        for measured in self.measured:
            one_round(measured, self.sides, self.asked, turn)

    def warm_up(self) -> None:
        """The same with few queries, forgotten."""
        for load in LOADS:
            one_round(Measured(load, self.kind), self.sides, self.asked[:WARM_UP], 0)
        self.measured = [Measured(load, self.kind) for load in LOADS]


def sides(options: argparse.Namespace, threads: int, stack: ExitStack) -> tuple[Ragserve, list[Group]]:
    """Everyone, started and warm, each with this many threads; `stack` ends them."""
    flags: dict[str, object] = {"model": MODEL, "knowledge": KNOWLEDGE, "device": options.device, "threads": threads}
    flags["lexical"] = True
    process = processes.start("retriever_svc", flags, CACHE.resolve() / "logs", threads=threads)
    stack.callback(process.kill)
    flags = {"model": MODEL, "knowledge": KNOWLEDGE, "device": options.device, "threads": threads, "k": K}
    bare_process = processes.start("bench.bare_service", flags, CACHE.resolve() / "logs", threads=threads)
    stack.callback(bare_process.kill)
    inner = InProcess(MODEL, KNOWLEDGE, K, threads, options.device)
    server = MilvusServer(inner.rows, threads=threads)
    stack.callback(server.stop)
    ours = Ragserve(process.wait_healthy(), K)
    bare = Ragserve(bare_process.wait_healthy(), K, name=BARE)
    by_words = Ragserve(process, K, common_pb2.SEARCH_KIND_BM25)
    milvus = [MilvusLite(server, K), MilvusLite(server, K, ("id",), "milvus-lite, ids only")]
    services: list[Side] = [ours, by_words, bare, *milvus]
    for side in services:
        stack.callback(side.close)
    texts: list[Asked] = list(questions(inner.rows, options.questions))
    vectors: list[Asked] = list(inner.encoder.encode_queries([str(text) for text in texts]))
    bm25s = Bm25s(inner.rows, K)
    groups = [
        Group("text", texts, [ours, inner, inner.as_the_service(), bare, bm25s]),
        Group("text, by words", texts, [by_words, bm25s]),
        Group("vector", vectors, [ours, inner, *milvus]),
    ]
    for group in groups:
        group.warm_up()
    ours.timed.clear()
    return ours, groups


def measure(options: argparse.Namespace, threads: int) -> tuple[str, list[dict[str, Any]]]:
    """Tables and raw figures with this many threads on either side."""
    with ExitStack() as stack:
        print(f"{threads} threads: starting the sides", flush=True)
        ours, groups = sides(options, threads, stack)
        for turn in range(options.rounds):
            print(f"{threads} threads: round {turn + 1} of {options.rounds}", flush=True)
            for group in groups:
                group.round(turn)
        measured = [each for group in groups for each in group.measured]
        stages = ours.stage_medians()
    title = f"Retrieve, k = {K}, {options.questions} queries, {threads} threads on either side"
    text = f"### {title}\n\n{verdict_table(measured)}\n{stages_table(stages)}\n"
    figures = [{"threads": threads, "stages_seconds": stages, **raw(each)} for each in measured]
    return text, figures


def raw(measured: Measured) -> dict[str, Any]:
    """What goes into the JSON file: all but the passages."""
    return {"load": asdict(measured.load), "queries": measured.queries, "values": measured.values, "p99": measured.p99}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.retrieval", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="64 queries, one round, one thread")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds; every side in each (default 5)")
    parser.add_argument("--questions", type=int, default=256, help="different queries in a round (default 256)")
    parser.add_argument(
        "--threads",
        type=int,
        nargs="+",
        default=[1, 2],
        help="threads of each side; a whole run for each (default 1 2)",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where both sides run (default cpu)")
    parser.add_argument("--no-save", action="store_true", help="print only; nothing goes to bench/results/")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.questions, options.threads = 1, 64, options.threads[:1]
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and append."""
    options = arguments(argv)
    about = {
        "benchmark": "retrieval",
        "device": options.device,
        "rounds": options.rounds,
        "questions": options.questions,
    }
    about |= report.environment(max(options.threads), report.installed(PACKAGES))
    runs = [measure(options, threads) for threads in options.threads]
    text = "\n".join(text for text, _ in runs)
    print("\n" + text)
    if not options.no_save:
        print(f"appended to {report.append_run(text, [row for _, rows in runs for row in rows], about)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
