"""How prefill, a step and an answer grow with documents, beams, context and sessions: `python -m bench.growth`.

The generator's engine in this process: its scheduler and its worker thread, no gRPC. One thing is varied at a time,
from 5 documents of 160 tokens, greedy, one session. Every session opens at once, and each has documents of its own;
prefill is the time until all of them have their first token. Then they decode together, and a step is the mean over the
others. An answer is all of it.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bench import growth_plot, options, report
from bench.beams import CANDIDATES, best_continuations
from bench.fit import growth
from bench.processes import ROOT
from bench.workload import SHAPES, Workload, model_directory
from generator_svc.commands import AdvanceCommand, Document, NextHypothesis, OpenCommand, StepControl, StepOutput
from generator_svc.engine import GeneratorEngine
from generator_svc.options import EngineOptions
from generator_svc.session import DecodeSession
from ragserve.serving.metrics import Metrics
from training.progress import stage

PLOT = ROOT / "docs/growth.svg"
SPARE = 4  # M: CANDIDATES, or twice the beams and this, as the orchestrator asks
ROOM: dict[str, Any] = {"max_sessions": 256, "max_rows": 8192, "cache_bytes": 64 * 2**30, "idle_seconds": 3600.0}
LONGEST = 1024  # tokens of a context


@dataclass(frozen=True)
class Setting:
    """What is asked for."""

    documents: int = 5
    beams: int = 1
    tokens: int = 160  # of a document's context
    sessions: int = 1


@dataclass(frozen=True)
class Axis:
    """What is varied, and the unit that slopes are given in."""

    name: str
    values: tuple[int, ...]
    unit: str
    per: int = 1

    def settings(self, points: int) -> list[Setting]:
        """At most so many, the first and the last among them."""
        return [replace(Setting(), **{self.name: value}) for value in thinned(self.values, points)]

    def value(self, point: Point) -> int:
        """Where a point is on this axis."""
        return int(getattr(point.setting, self.name))


AXES = (
    Axis("documents", (1, 2, 5, 10, 20, 50), "document"),
    Axis("beams", (1, 2, 3, 4, 6, 8), "beam"),
    Axis("tokens", (50, 100, 160, 300, 500, 1000), "100 tokens", 100),
    Axis("sessions", (1, 2, 4, 8, 16, 32, 64), "session"),
)


@dataclass(frozen=True)
class Point:
    """Seconds at one setting."""

    precision: str
    setting: Setting
    prefill: float
    step: float
    answer: float


FIGURES = ("prefill", "step", "answer")


def thinned(values: Sequence[int], count: int) -> list[int]:
    """At most `count` of them, evenly by rank, the first and the last among them."""
    if count >= len(values):
        return list(values)
    return [values[round(rank * (len(values) - 1) / (count - 1))] for rank in range(count)]


class Timed:
    """One engine, and the sessions that are timed on it."""

    def __init__(self, engine: GeneratorEngine, new_tokens: int) -> None:
        self._engine, self._new_tokens = engine, new_tokens
        self._end = StepControl(banned=engine.info().tokens.token_rules.eos_token_id)

    async def measure(self, precision: str, setting: Setting) -> Point:
        """All sessions of one setting."""
        together = asyncio.Barrier(setting.sessions)
        begin = time.perf_counter()
        times = await asyncio.gather(*(self._session(setting, seed, together) for seed in range(setting.sessions)))
        first, last = max(time for time, _ in times), max(time for _, time in times)
        return Point(precision, setting, first - begin, (last - first) / (self._new_tokens - 1), last - begin)

    async def _session(self, setting: Setting, seed: int, together: asyncio.Barrier) -> tuple[float, float]:
        """When its first and its last token were there."""
        workload = Workload(setting.documents, setting.tokens, self._new_tokens, seed=seed)
        async with self._engine.connect() as session:
            step = await self._open(session, workload, setting)
            first = time.perf_counter()
            await together.wait()
            totals = np.zeros(1)
            for _ in range(self._new_tokens - 1):
                chosen = (totals, step.token_ids, step.log_probs, workload.log_priors(), setting.beams)
                choices, totals = best_continuations(*chosen)
                hypotheses = tuple(NextHypothesis(parent, token, self._end) for parent, token in choices)
                step = (await session.advance(AdvanceCommand(hypotheses, candidates(setting.beams)))).output
            last = time.perf_counter()
            await together.wait()
            return first, last

    async def _open(self, session: DecodeSession, workload: Workload, setting: Setting) -> StepOutput:
        texts = zip(workload.texts(), workload.log_priors(), strict=True)
        documents = tuple(Document(workload.title, text, prior) for text, prior in texts)
        asked = {"max_context_tokens": LONGEST, "control": self._end}
        command = OpenCommand(workload.question, documents, "token", candidates(setting.beams), **asked)
        output = (await session.open(command)).output
        if output.step is None or output.context_tokens != (setting.tokens,) * setting.documents:
            raise RuntimeError(f"contexts of {output.context_tokens} tokens where {setting.tokens} were meant")
        return output.step


def candidates(beams: int) -> int:
    """M of each step."""
    return max(CANDIDATES, 2 * beams + SPARE)


async def measure(model: Path, precision: str, chosen: argparse.Namespace) -> list[Point]:
    """Every setting once, each axis from its smallest value, after a warm-up."""
    settings = list(dict.fromkeys(one for axis in AXES for one in (Setting(), *axis.settings(chosen.points))))
    asked: dict[str, Any] = {"precision": precision, "threads": chosen.threads, **ROOM}
    engine = GeneratorEngine(model, EngineOptions(device="cpu", **asked), Metrics())
    await engine.start()
    points: list[Point] = []
    try:
        timed = Timed(engine, chosen.tokens)
        await timed.measure(precision, Setting())
        with stage(f"{precision}, {len(settings)} settings") as bar:
            for setting in settings:
                points.append(await timed.measure(precision, setting))
                bar.update(len(points), len(settings), str(setting))
    finally:
        await engine.stop()
    return points


def on_axis(axis: Axis, points: Sequence[Point]) -> list[Point]:
    """Those with everything else at the base, by rising value."""
    base = asdict(Setting()) | {axis.name: None}
    return sorted((one for one in points if asdict(one.setting) | {axis.name: None} == base), key=axis.value)


def points_table(points: Sequence[Point]) -> str:
    """Every setting."""
    rows = [
        [one.precision, axis.name, str(axis.value(one)), *(f"{getattr(one, name):.3f}" for name in FIGURES)]
        for precision in dict.fromkeys(one.precision for one in points)
        for axis in AXES
        for one in on_axis(axis, [one for one in points if one.precision == precision])
    ]
    return report.markdown(["precision", "varied", "value", *(f"{name}, s" for name in FIGURES)], rows, 2) + "\n"


def slopes_table(points: Sequence[Point]) -> str:
    """Least squares: milliseconds for each unit more, and the exponent p of figure ~ value^p."""
    rows = []
    for precision in dict.fromkeys(one.precision for one in points):
        for axis in AXES:
            own = on_axis(axis, [one for one in points if one.precision == precision])
            x = [axis.value(one) / axis.per for one in own]
            grown = [growth(x, [getattr(one, name) for one in own]) for name in FIGURES]
            cells = [cell for one in grown for cell in (f"{1000 * one.slope:.2f}", f"{one.exponent:.2f}")]
            rows.append([precision, axis.unit, *cells])
    head = [cell for name in FIGURES for cell in (f"{name}, ms", "p")]
    return report.markdown(["precision", "for each more", *head], rows, 2) + "\n"


def lines(points: Sequence[Point]) -> list[growth_plot.Panel]:
    """For the plot."""
    return [
        growth_plot.Panel(
            axis.name,
            {
                (precision, name): [(axis.value(one), getattr(one, name)) for one in on_axis(axis, own)]
                for precision in dict.fromkeys(one.precision for one in points)
                for own in [[one for one in points if one.precision == precision]]
                for name in FIGURES
            },
        )
        for axis in AXES
    ]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = options.parser("growth", __doc__, ["int8"])
    parser.add_argument("--points", type=int, default=99, help="most points of each axis, 2 or more (default all)")
    parser.add_argument("--tokens", type=int, default=20, help="tokens of an answer, 2 or more (default 20)")
    parser.add_argument("--plot", type=Path, help=f"the picture (default {PLOT.relative_to(ROOT)}, none if not saved)")
    chosen = parser.parse_args(argv)
    if min(chosen.points, chosen.tokens) < 2:
        parser.error("--points and --tokens must be 2 or more")
    return chosen


def about(chosen: argparse.Namespace) -> Mapping[str, Any]:
    """What the figures depend on."""
    what = {"part": "growth", "shape": chosen.shape, "new_tokens": chosen.tokens}
    return {**what, **report.environment(chosen.threads)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, append and draw."""
    chosen = arguments(argv)
    environment, model = about(chosen), model_directory(SHAPES[chosen.shape])
    points = [one for precision in chosen.precisions for one in asyncio.run(measure(model, precision, chosen))]
    text = f"{points_table(points)}\n{slopes_table(points)}"
    print(f"\n{text}")
    plot = chosen.plot or (None if chosen.no_save else PLOT)
    if plot is not None:
        title = f"{chosen.shape}, {chosen.tokens} tokens, {chosen.threads} threads, {environment['cpu']}"
        growth_plot.draw(lines(points), plot, title)
        print(f"drew {plot}")
    if not chosen.no_save:
        print(f"appended to {report.append_run(text, [asdict(one) for one in points], environment)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
