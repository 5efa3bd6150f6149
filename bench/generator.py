"""The generator and the search over tokens against transformers, taking turns: `python -m bench --only generator`."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import CACHE, report
from bench.peers import HuggingFace
from bench.report import CaseResult
from bench.system import Ragserve
from bench.workload import SHAPES, Workload, model_directory
from generator_svc.models.numerics import NUMERICS

OURS, *PEERS = report.PROVIDERS
PAUSE_SECONDS = 0.5  # lets the other side's worker threads fall asleep
CASES = (("token", 1), ("token", 4), ("sequence", 4))


@dataclass
class Measured:
    """What was collected for one case so far."""

    mode: str
    beams: int
    seconds: dict[str, list[float]] = field(default_factory=dict)
    answers: dict[str, list[int]] = field(default_factory=dict)
    stages: dict[str, dict[str, float]] = field(default_factory=dict)

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


def ours(system: Ragserve, measured: Measured) -> Callable[[], list[int]]:
    """A call of this system that keeps its stages."""

    def call() -> list[int]:
        tokens, measured.stages[system.precision] = system.generate(measured.mode, measured.beams)
        return tokens

    return call


def theirs(peer: HuggingFace, measured: Measured, *, padded: bool) -> Callable[[], list[int]]:
    """A call of transformers."""
    return lambda: peer.generate(measured.mode, measured.beams, padded=padded)


def measure(systems: Sequence[Ragserve], peer: HuggingFace, repeats: int, *, padded: bool) -> list[CaseResult]:
    """Take turns: each repeat asks every side for every case."""
    cases = [Measured(mode, beams) for mode, beams in CASES]
    for system in systems:
        timed(cases[0], system.precision, ours(system, cases[0]), keep=False)
    timed(cases[0], PEERS[0], theirs(peer, cases[0], padded=False), keep=False)
    for _ in range(repeats):
        for case in cases:
            for system in systems:
                timed(case, system.precision, ours(system, case))
            timed(case, PEERS[0], theirs(peer, case, padded=False))
            if padded:
                timed(case, PEERS[1], theirs(peer, case, padded=True))
    return [result for case in cases for result in case.results()]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench --only generator", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one repeat, and nothing padded")
    parser.add_argument("--repeats", type=int, default=3, help="measured repeats of every case (default 3)")
    parser.add_argument("--threads", type=int, default=2, help="threads of whichever side computes (default 2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where both sides run (default cpu)")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="bart-large", help="size of the random BART")
    parser.add_argument(
        "--precisions", nargs="+", choices=sorted(NUMERICS), default=["float32", "int8"], help="of our side"
    )
    parser.add_argument("--no-save", action="store_true", help="print only; nothing goes to bench/results/")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and append."""
    chosen = arguments(argv)
    workload, about = Workload(), report.environment(chosen.threads)
    about = {"shape": chosen.shape, "device": chosen.device, **vars(workload), **about}
    print(f"building {chosen.shape} (kept in {CACHE})", flush=True)
    model = model_directory(SHAPES[chosen.shape])
    logs = Path(CACHE).resolve() / "logs"
    placed: dict[str, Any] = {"threads": chosen.threads, "device": chosen.device}
    with ExitStack() as stack:
        systems = [Ragserve(model, workload, logs, **placed, precision=name) for name in chosen.precisions]
        for system in systems:
            stack.callback(system.close)
        peer = HuggingFace(model, workload, **placed)
        for system in systems:
            system.wait_healthy()
        results = measure(systems, peer, 1 if chosen.quick else chosen.repeats, padded=not chosen.quick)
    print("\n" + report.table(results))
    if not chosen.no_save:
        print(f"appended to {report.append(results, about)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
