"""The generator on a GPU against transformers on the same one, in the same run: `python -m bench.gpu_generator`.

Steps: one session of 5 documents, until the candidates are on the host, with CUDA graphs and without. Answers: through
generator and orchestrator over gRPC, RAG-Token, greedy, the documents given, the end of sequence banned. transformers
generates the same answers alone, and in batches that come full. `--device cpu --shape small` tries it where there is no
GPU. The table also goes to the folder that $OUT names.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench import CACHE, report
from bench.gpu_steps import StepBench
from bench.peers import HuggingFace
from bench.system import Ragserve
from bench.workload import SHAPES, Workload, model_directory
from generator_svc.models.numerics import NUMERICS
from generator_svc.models.precision import Precision

SEARCHES = {"greedy": 1, "4 beams": 4}
CLIENTS = (1, 16, 128)
BATCHES = (1, 16, 64)  # questions in one batch of transformers
WARM_UPS = 3
MOST_STEP_MS, MOST_ANSWER_MS, LEAST_RATE = 1.5, 40.0, 500.0  # goals on an H200: BART-large in bfloat16
LEAST_FASTER, LEAST_MORE = 20.0, 50.0  # goals against transformers: latency and throughput
LIMITS = {"max-sessions": 256, "max-rows": 4096, "prefill-tokens": 8192, "cache-bytes": 16 * 2**30}


@dataclass
class Figures:
    """What was measured; steps by precision, search and whether graphs were used."""

    device: str
    steps: list[dict[str, Any]] = field(default_factory=list)
    answer_ms: dict[str, float] = field(default_factory=dict)  # p50 by precision
    rates: dict[str, dict[int, float]] = field(default_factory=dict)  # answers a second by precision and clients
    peer_ms: dict[str, float] = field(default_factory=dict)
    peer_rates: dict[str, dict[int, float]] = field(default_factory=dict)  # by precision and batch


def device_name(device: str) -> str:
    """The device's own name."""
    return torch.cuda.get_device_name() if device == "cuda" else report.cpu_name()


def median_ms(call: Callable[[], object], repeats: int) -> float:
    """Median milliseconds of a call."""
    taken = []
    for _ in range(WARM_UPS + repeats):
        begin = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begin)
    return 1000 * statistics.median(taken[WARM_UPS:])


def rate(call: Callable[[], object], clients: int, seconds: float) -> float:
    """Answers a second of so many clients, each asking again as soon as it is answered."""

    def ask(until: float) -> int:
        answers = 0
        while time.perf_counter() < until:
            call()
            answers += 1
        return answers

    with ThreadPoolExecutor(clients) as pool:
        for length in (seconds / 2, seconds):  # the first one warms up: graphs of other sizes
            begin = time.perf_counter()
            answers = sum(pool.map(ask, [begin + length] * clients))
            taken = time.perf_counter() - begin
    return answers / taken


def measure_steps(figures: Figures, generator: Path, workload: Workload, chosen: argparse.Namespace) -> None:
    """Steps of every precision."""
    for precision in chosen.precisions:
        bench = StepBench(generator, workload, chosen.device, precision)
        for search, beams in SEARCHES.items():
            for graphs in bench.steppers:
                times = bench.measure(graphs, beams, chosen.repeats)
                one = {"precision": precision, "search": search, "graphs": graphs, **asdict(times)}
                figures.steps.append(one)
                print(f"  {one}", flush=True)


def measure_answers(figures: Figures, model: Path, workload: Workload, chosen: argparse.Namespace) -> None:
    """Answers through the services."""
    placed: dict[str, Any] = {"threads": chosen.threads, "device": chosen.device, "flags": LIMITS}
    for precision in chosen.precisions:
        system = Ragserve(model, workload, CACHE.resolve() / "logs", **placed, precision=precision)
        try:
            system.wait_healthy()
            figures.answer_ms[precision] = median_ms(lambda: system.generate("token", 1), chosen.repeats)  # noqa: B023
            figures.rates[precision] = {
                clients: rate(lambda: system.generate("token", 1), clients, chosen.seconds)  # noqa: B023
                for clients in chosen.clients
            }
        finally:
            system.close()
        print(f"  {precision}: {figures.answer_ms[precision]:.1f} ms, {figures.rates[precision]} a second", flush=True)


def measure_peer(figures: Figures, model: Path, workload: Workload, chosen: argparse.Namespace) -> None:
    """The peer, alone and in batches."""
    for precision in chosen.precisions:
        dtype = NUMERICS[precision].activations
        peer = HuggingFace(model, workload, threads=chosen.threads, device=chosen.device, dtype=dtype)
        figures.peer_ms[precision] = median_ms(lambda: peer.generate("token", 1, padded=False), chosen.repeats)  # noqa: B023
        figures.peer_rates[precision] = {
            batch: 1000 * batch / median_ms(lambda: peer.generate_batch(batch), 2)  # noqa: B023
            for batch in chosen.batches
        }
        shown = figures.peer_rates[precision]
        print(f"  transformers {precision}: {figures.peer_ms[precision]:.1f} ms, {shown} a second", flush=True)


def steps_table(figures: Figures) -> str:
    """Steps and encoding."""
    lines = ["| precision | search | graphs | step, ms | encoding 5 documents, ms |", "|---|---|---|---:|---:|"]
    for one in figures.steps:
        numbers = f"{one['step_ms']:.2f} | {one['encode_ms']:.2f}"
        lines.append(f"| {one['precision']} | {one['search']} | {one['graphs']} | {numbers} |")
    return "\n".join(lines)


def answers_table(figures: Figures) -> str:
    """Answers of both sides, and how many times faster ours are."""
    lines = [
        "| precision | system | answer p50, ms | answers/s (clients, or batch of transformers) |",
        "|---|---|---:|---|",
    ]
    for precision, ours in figures.rates.items():
        theirs = figures.peer_rates[precision]
        for name, milliseconds, rates in (
            ("ragserve", figures.answer_ms[precision], ours),
            ("transformers", figures.peer_ms[precision], theirs),
        ):
            shown = ", ".join(f"{count}: {value:.1f}" for count, value in rates.items())
            lines.append(f"| {precision} | {name} | {milliseconds:.1f} | {shown} |")
        faster = figures.peer_ms[precision] / figures.answer_ms[precision]
        more = max(ours.values()) / max(theirs.values())
        lines.append(f"| {precision} | ratio | {faster:.1f}x | {more:.1f}x |")
    return "\n".join(lines)


def goals_table(figures: Figures, precision: Precision) -> str:
    """The goals, set for BART-large in bfloat16 on an H200."""
    step = min(one["step_ms"] for one in figures.steps if (one["precision"], one["search"]) == (precision, "greedy"))
    answer, best = figures.answer_ms[precision], max(figures.rates[precision].values())
    found = [
        ("step, greedy, ms", step, MOST_STEP_MS, step <= MOST_STEP_MS),
        ("answer p50, ms", answer, MOST_ANSWER_MS, answer <= MOST_ANSWER_MS),
        ("answers/s", best, LEAST_RATE, best >= LEAST_RATE),
    ]
    ratios = (
        ("latency against transformers, times", figures.peer_ms[precision] / answer, LEAST_FASTER),
        ("throughput against transformers, times", best / max(figures.peer_rates[precision].values()), LEAST_MORE),
    )
    found += [(name, ratio, goal, ratio >= goal) for name, ratio, goal in ratios]
    lines = [f"| {precision} | measured | goal | met |", "|---|---:|---:|---|"]
    lines += [f"| {name} | {value:.2f} | {goal:g} | {'yes' if met else 'no'} |" for name, value, goal, met in found]
    return "\n".join(lines)


def save(text: str, figures: Figures, about: Mapping[str, Any]) -> None:
    """Write table and figures to $OUT, where it is set."""
    if folder := os.environ.get("OUT"):
        (Path(folder) / "gpu_generator.md").write_text(text, encoding="utf-8")
        data = json.dumps({**about, **asdict(figures)}, indent=1)
        (Path(folder) / "gpu_generator.json").write_text(data, encoding="utf-8")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_generator", description=__doc__, formatter_class=raw)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="bart-large", help="size of the random BART")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda", help="where both sides run (default cuda)")
    parser.add_argument("--precisions", nargs="+", choices=sorted(NUMERICS), help="default: all of the device's kind")
    parser.add_argument("--threads", type=int, default=2, help="threads of a process on the host (default 2)")
    parser.add_argument("--repeats", type=int, default=10, help="measured repeats of a latency (default 10)")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement of throughput (default 8)")
    parser.add_argument("--clients", nargs="+", type=int, default=list(CLIENTS), help="default: 1 16 128")
    parser.add_argument("--batches", nargs="+", type=int, default=list(BATCHES), help="of transformers: 1 16 64")
    chosen = parser.parse_args(argv)
    on_cuda = ["float32", "bfloat16", "float16"]
    chosen.precisions = chosen.precisions or (on_cuda if chosen.device == "cuda" else ["float32"])
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    chosen = arguments(argv)
    workload = Workload(new_tokens=16)
    about = {
        "shape": chosen.shape,
        **asdict(workload),
        **report.environment(chosen.threads, report.installed(report.PACKAGES)),
    }
    model = model_directory(SHAPES[chosen.shape])
    figures = Figures(device_name(chosen.device))
    print(f"{figures.device}, {chosen.shape}", flush=True)
    measure_steps(figures, model / "generator", workload, chosen)
    measure_answers(figures, model, workload, chosen)
    measure_peer(figures, model, workload, chosen)
    main_precision: Precision = "bfloat16" if "bfloat16" in chosen.precisions else chosen.precisions[0]
    tables = (steps_table(figures), answers_table(figures), goals_table(figures, main_precision))
    facts = ", ".join(f"{key} {value}" for key, value in about.items())
    text = "\n\n".join([f"## {figures.device}", facts, *tables]) + "\n"
    print(f"\n{text}")
    save(text, figures, about)
    return 0


if __name__ == "__main__":
    sys.exit(main())
