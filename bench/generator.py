"""The generator and the search over tokens against transformers, taking turns: `python -m bench --only generator`."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from bench import CACHE, options, report
from bench.heads import HEADS, TARGET_NATS
from bench.peers import HuggingFace
from bench.report import CaseResult
from bench.system import Ragserve
from bench.workload import SHAPES, Workload, entropy_of, model_directory

OURS, *PEERS = report.PROVIDERS
PAUSE_SECONDS = 0.5  # lets the other side's worker threads fall asleep
CASES = (("token", 1), ("token", 4), ("sequence", 4))


@dataclass
class Measured:
    """What was collected for one case so far."""

    mode: str
    beams: int
    workload: Workload
    seconds: dict[str, list[float]] = field(default_factory=dict)
    answers: dict[str, list[int]] = field(default_factory=dict)
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    widenings: dict[str, list[float]] = field(default_factory=dict)  # of each repeat, by precision

    @property
    def name(self) -> str:
        """For the table."""
        search = "greedy" if self.beams == 1 else f"{self.beams} beams"
        return f"RAG-{self.mode}, {'thorough, ' if self.mode == 'sequence' else ''}{search}"

    def results(self) -> list[CaseResult]:
        """All repeats together, for each of our precisions."""
        theirs = {name: values for name, values in self.seconds.items() if name in PEERS}
        return [
            CaseResult(
                f"{self.name}, {precision}",
                {OURS: self.seconds[precision], **theirs},
                self.answers[precision] == self.answers[PEERS[0]],
                stages,
                statistics.mean(self.widenings[precision]) / self.workload.new_tokens,
            )
            for precision, stages in self.stages.items()
        ]


def timed(measured: Measured, provider: str, call: Callable[[], list[int]], *, keep: bool = True) -> None:
    """Run once; the first runs (`keep` false) only warm up."""
    time.sleep(PAUSE_SECONDS)
    begin = time.monotonic()
    answer = call()
    taken = time.monotonic() - begin
    print(f"  {measured.name}: {provider} {taken:.2f} s{'' if keep else ' (warm-up)'}", flush=True)
    if keep:
        measured.seconds.setdefault(provider, []).append(taken)
        measured.answers[provider] = answer


def timed_ours(system: Ragserve, measured: Measured) -> None:
    """Run ours once, counting what it widens."""
    before = system.widenings()
    timed(measured, system.precision, ours(system, measured))
    measured.widenings.setdefault(system.precision, []).append(system.widenings() - before)


def ours(system: Ragserve, measured: Measured) -> Callable[[], list[int]]:
    """A call of this system that keeps its stages."""

    def call() -> list[int]:
        tokens, measured.stages[system.precision] = system.generate(measured.mode, measured.beams, measured.workload)
        return tokens

    return call


def theirs(peer: HuggingFace, measured: Measured, *, padded: bool) -> Callable[[], list[int]]:
    """A call of transformers."""
    return lambda: peer.generate(measured.mode, measured.beams, padded=padded)


def measure(
    systems: Sequence[Ragserve], peer: HuggingFace, workload: Workload, repeats: int, *, padded: bool
) -> list[CaseResult]:
    """Take turns: each repeat asks every side for every case."""
    cases = [Measured(mode, beams, workload) for mode, beams in CASES]
    for system in systems:
        timed(cases[0], system.precision, ours(system, cases[0]), keep=False)
    timed(cases[0], PEERS[0], theirs(peer, cases[0], padded=False), keep=False)
    for _ in range(repeats):
        for case in cases:
            for system in systems:
                timed_ours(system, case)
            timed(case, PEERS[0], theirs(peer, case, padded=False))
            if padded:
                timed(case, PEERS[1], theirs(peer, case, padded=True))
    return [result for case in cases for result in case.results()]


def widenings_table(results: Sequence[CaseResult]) -> str:
    """How often the first candidates were not enough, for each of our cases."""
    rows = [[result.case, f"{result.widenings_per_step:.2f}"] for result in results]
    return report.markdown(["case", "rows widened per step"], rows) + "\n"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = options.parser("generator", __doc__)
    parser.add_argument("--quick", action="store_true", help="one repeat, and nothing padded")
    parser.add_argument("--repeats", type=int, default=3, help="measured repeats of every case (default 3)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where both sides run (default cpu)")
    parser.add_argument(
        "--head",
        choices=HEADS,
        default=HEADS[0],
        help=f"next-token distribution: as the weights give it, or scaled to {TARGET_NATS} nats (default {HEADS[0]})",
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and append."""
    chosen = arguments(argv)
    workload, about = Workload(), report.environment(chosen.threads, report.installed(report.PACKAGES))
    print(f"building {chosen.shape}, {chosen.head} head (kept in {CACHE})", flush=True)
    model = model_directory(SHAPES[chosen.shape], chosen.head)
    nats = round(entropy_of(model), 2)
    print(f"entropy of the marginal: {nats} nats")
    about = {"head": chosen.head, "marginal_entropy_nats": nats, **vars(workload), **about}
    on = torch.cuda.get_device_name() if chosen.device == "cuda" else about["cpu"]
    about = {"shape": chosen.shape, "device": chosen.device, "device_name": on, **about}
    placed: dict[str, Any] = {"threads": chosen.threads, "device": chosen.device}
    with ExitStack() as stack:
        systems = [Ragserve(model, workload, options.logs(), **placed, precision=name) for name in chosen.precisions]
        for system in systems:
            stack.callback(system.close)
        peer = HuggingFace(model, workload, **placed)
        for system in systems:
            system.wait_healthy()
        repeats = 1 if chosen.quick else chosen.repeats
        results = measure(systems, peer, workload, repeats, padded=not chosen.quick)
    text = f"{report.table(results)}\n{widenings_table(results)}"
    print("\n" + text)
    if not chosen.no_save:
        print(f"appended to {report.append_run(text, [asdict(result) for result in results], about)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
