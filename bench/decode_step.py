"""One decode step of ours against CTranslate2's, taking turns: `python -m bench.decode_step`.

The plan: both sides read the same five contexts of 160 tokens on the same random BART and generate 21 tokens, end of
sequence banned. The first step belongs to the prefill. Timed are the other 20, with paths of 2 to 21 tokens: 5 rows
greedily, 20 rows with 4 beams.

- Ours is the runner as the generator's worker calls it (no service around it): packed `encode` passes, then `step` in
  token mode (each hypothesis has a row for each document), `score_step` (normalize, and sum over documents) and
  `select` (the top M). Which hypotheses go on is chosen between the timings, as the orchestrator does that.
- CTranslate2 decodes the five contexts as a batch of independent inputs, with 1 or 4 beams each: the same rows, and
  nothing summed over documents. It has no call for a step, so one is (21 tokens - 1 token) / 20; that includes its beam
  search. Greedily it neither normalizes nor ranks, it takes the largest logit.

Each round measures every side once, beginning with another one each time, after a search that is not counted: the first
one after a pause takes longer. The tables show medians of the rounds.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import torch
from transformers import AutoConfig, AutoTokenizer

from bench import report
from bench.beams import CANDIDATES, best_continuations
from bench.ctranslate2_peer import PRECISIONS, CTranslate2, Precision
from bench.workload import SHAPES, Workload, model_directory
from generator_svc.budget import Capacity
from generator_svc.candidates import StepScores, score_step, select
from generator_svc.commands import StepControl, StepOutput
from generator_svc.device import pass_size
from generator_svc.kernels import native
from generator_svc.models.bart import Bart
from generator_svc.models.base import EncodePass, Rows, SelfAttention, Seq2SeqModel
from generator_svc.models.numerics import NUMERICS
from generator_svc.runner import Runner, StepRows
from generator_svc.scheduler import Scheduler
from generator_svc.sessions import Session, Start
from generator_svc.weights import TensorFile, WeightMap

SEARCHES = {"greedy": 1, "4 beams": 4}
STEPS = 20  # timed; the one before them is the prefill's
PAUSE_SECONDS = 0.5  # lets the other side's worker threads fall asleep
OURS, THEIRS = "ragserve", "CTranslate2"
PACKAGES = ("ragserve", "torch", "transformers", "numpy", "ctranslate2")
CPU = torch.device("cpu")
T = TypeVar("T")


@dataclass(frozen=True)
class Decoded:
    """Seconds of one search; what only our side can tell apart is None for the other."""

    first_token: float  # encoding and the first step
    step: float
    encoding: float | None = None
    head: float | None = None  # of a step: the projection to the vocabulary
    marginal: float | None = None  # of a step: log-softmax and the sum over documents
    top: float | None = None  # of a step: the M best


class Side(Protocol):
    """Whoever is measured."""

    name: str
    precision: Precision

    def decode(self, beams: int) -> Decoded:
        """Encode and generate once."""

    def close(self) -> None:
        """End what was started."""


class TimedHead:
    """A model that adds up the seconds of its projection to the vocabulary; see `Seq2SeqModel`."""

    def __init__(self, model: Seq2SeqModel) -> None:
        self._model = model
        self.shape = model.shape
        self.seconds = 0.0

    def encode(self, contexts: Sequence[Sequence[int]]) -> EncodePass:
        """See `Seq2SeqModel`."""
        return self._model.encode(contexts)

    def decode(self, rows: Rows, attention: SelfAttention) -> torch.Tensor:
        """See `Seq2SeqModel`."""
        return self._model.decode(rows, attention)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `Seq2SeqModel`."""
        taken, logits = timed(lambda: self._model.logits(hidden))
        self.seconds += taken
        return logits


@dataclass
class Spent:
    """Seconds of the parts of our steps so far."""

    step: float = 0.0  # the runner's pass, head included
    head: float = 0.0
    marginal: float = 0.0
    top: float = 0.0

    @property
    def whole(self) -> float:
        """Until the candidates are there."""
        return self.step + self.marginal + self.top


class Chain:
    """One session in token mode, driven straight on scheduler and runner: no thread, no queue."""

    def __init__(
        self, runner: Runner, head: TimedHead, contexts: Sequence[Sequence[int]], priors: torch.Tensor
    ) -> None:
        self._runner, self._head, self._contexts, self._priors = runner, head, contexts, priors
        self._scheduler = Scheduler(Capacity(prefill_tokens=pass_size(CPU, 0, 0).prefill_tokens))
        self._totals = np.zeros(1)

    def open(self, start: int) -> float:
        """Encode the documents; the seconds it took."""
        self._session = Session(tuple(map(tuple, self._contexts)), True, (Start((start,)),))
        self._scheduler.admit(self._session, time.monotonic())
        self._runner.cache.grow(self._scheduler.slots.size)
        taken, _ = timed(self._encode)
        self._scheduler.started(self._session)
        return taken

    def _encode(self) -> None:
        """In passes as the scheduler plans them."""
        while (plan := self._scheduler.plan(time.monotonic())).encode:
            encoded = self._runner.encode([document.token_ids for document in plan.encode])
            for document, state in zip(plan.encode, encoded.documents, strict=True):
                document.state = state
            self._scheduler.encoded(plan.encode)

    def step(self, banned: int, spent: Spent) -> StepOutput:
        """The next step of all hypotheses and its candidates; adds what they took to `spent`."""
        hypotheses = self._session.hypotheses
        rows = [StepRows(tuple(one.state for one in self._session.documents), tuple(hypotheses), True)]
        controls = [StepControl(banned=(banned,)) for _ in hypotheses]
        before = self._head.seconds
        taken, logits = timed(lambda: self._runner.step(rows)[0])
        spent.step += taken
        spent.head += self._head.seconds - before
        taken, scores = timed(lambda: score_step(logits, controls, self._priors))
        spent.marginal += taken
        taken, output = timed(lambda: top(scores))
        spent.top += taken
        self._scheduler.finished(self._session, time.monotonic())
        return output

    def advance(self, output: StepOutput, beams: int) -> None:
        """Go on with the `beams` best continuations, as a beam search without ends does."""
        step = (output.token_ids, output.log_probs)
        choices, self._totals = best_continuations(self._totals, *step, self._priors.tolist(), beams)
        self._scheduler.advance(self._session, choices, time.monotonic())
        self._runner.cache.grow(self._scheduler.slots.size)


class Ours:
    """The generator's runner with one model."""

    name = OURS

    def __init__(
        self,
        generator: Path,
        contexts: Sequence[Sequence[int]],
        priors: torch.Tensor,
        precision: Precision,
        like: Ours | None = None,
    ) -> None:
        """Load the model, or take the one that is `like` this but for the contexts."""
        config = AutoConfig.from_pretrained(str(generator))
        self.precision: Precision = precision
        self._head = like._head if like is not None else TimedHead(_load(generator, config, precision))
        self._runner = Runner(self._head, CPU)
        self._contexts, self._priors = contexts, priors
        self._start, self._end = int(config.decoder_start_token_id), int(config.eos_token_id)

    @torch.inference_mode()
    def decode(self, beams: int, steps: int = STEPS) -> Decoded:
        """See `Side`."""
        chain = Chain(self._runner, self._head, self._contexts, self._priors)
        encoding, first, rest = chain.open(self._start), Spent(), Spent()
        output = chain.step(self._end, first)
        for _ in range(steps):
            chain.advance(output, beams)
            output = chain.step(self._end, rest)
        seconds = {name: getattr(rest, name) / steps for name in ("head", "marginal", "top")}
        return Decoded(encoding + first.whole, rest.whole / steps, encoding, **seconds)

    def close(self) -> None:
        """Nothing was started."""


def _load(generator: Path, config: Any, precision: Precision) -> Bart:
    return Bart(config, WeightMap(TensorFile(generator / "model.safetensors")), CPU, NUMERICS[precision])


class Theirs:
    """CTranslate2 with one compute type."""

    name = THEIRS

    def __init__(self, generator: Path, contexts: Sequence[Sequence[str]], precision: Precision, threads: int) -> None:
        self.precision: Precision = precision
        self._peer = CTranslate2(generator, contexts, precision=precision, threads=threads)

    def decode(self, beams: int) -> Decoded:
        """See `Side`."""
        first = self._peer.seconds(beams, 1)
        return Decoded(first, (self._peer.seconds(beams, 1 + STEPS) - first) / STEPS)

    def close(self) -> None:
        """End its process."""
        self._peer.close()


class Results:
    """What the rounds gave, by precision, side and search."""

    def __init__(self) -> None:
        self.rounds: dict[tuple[Precision, str, str], list[Decoded]] = {}

    def add(self, side: Side, search: str, decoded: Decoded) -> None:
        """One more round."""
        self.rounds.setdefault((side.precision, side.name, search), []).append(decoded)

    def median(self, precision: Precision, side: str, search: str, field: str) -> float:
        """The median of the rounds."""
        values: list[float] = [getattr(one, field) for one in self.rounds[precision, side, search]]
        return statistics.median(values)

    def precisions(self) -> list[Precision]:
        """Those measured, in their order."""
        return list(dict.fromkeys(precision for precision, _, _ in self.rounds))

    def raw(self) -> list[dict[str, Any]]:
        """For the JSON file: every figure of every round."""
        return [
            {"precision": precision, "side": side, "search": search, "rounds": [asdict(one) for one in rounds]}
            for (precision, side, search), rounds in self.rounds.items()
        ]


def timed(work: Callable[[], T]) -> tuple[float, T]:
    """The seconds of some work, and what it gave."""
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def top(scores: StepScores) -> StepOutput:
    """The candidates of all hypotheses."""
    return select(scores, range(len(scores.controls)), CANDIDATES)


def steps_table(results: Results) -> str:
    """Medians of both sides, and how many times as long ours takes as CTranslate2."""
    lines = ["| system | prefill, s | step greedy, ms | step 4 beams, ms |", "| --- | ---: | ---: | ---: |"]
    for precision in results.precisions():
        ours, theirs = (_columns(results, precision, side) for side in (OURS, THEIRS))
        for name, (prefill, *steps) in ((OURS, ours), (THEIRS, theirs)):
            cells = [f"{prefill:.3f}", *(f"{1000 * step:.2f}" for step in steps)]
            lines.append(f"| {name} {precision} | {' | '.join(cells)} |")
        ratios = [f"{mine / other:.2f}×" for mine, other in zip(ours, theirs, strict=True)]
        lines.append(f"| {OURS} / {THEIRS}, {precision} | {' | '.join(ratios)} |")
    return "\n".join(lines) + "\n\nPrefill: until the first token, so encoding and a step of 5 rows.\n"


def _columns(results: Results, precision: Precision, side: str) -> list[float]:
    prefill = results.median(precision, side, "greedy", "first_token")
    return [prefill, *(results.median(precision, side, search, "step") for search in SEARCHES)]


def parts_table(results: Results) -> str:
    """Where our step's time goes once the decoder layers are done, and the encoding without the first step."""
    head = (
        "of ragserve",
        "encoding, s",
        "step, ms",
        "head, ms",
        "log-softmax and marginal, ms",
        "top M, ms",
        "together",
    )
    lines = [f"| {' | '.join(head)} |", f"| --- |{' ---: |' * (len(head) - 1)}"]
    for precision, search in itertools.product(results.precisions(), SEARCHES):
        names = [field.name for field in fields(Decoded)]
        median = {name: results.median(precision, OURS, search, name) for name in names}
        parts = [median[name] for name in ("head", "marginal", "top")]
        share = f"{100 * sum(parts) / median['step']:.0f} %"
        milliseconds = [f"{1000 * seconds:.2f}" for seconds in (median["step"], *parts)]
        lines.append(f"| {precision}, {search} | {median['encoding']:.3f} | {' | '.join(milliseconds)} | {share} |")
    return "\n".join(lines) + "\n"


def rotated(sides: Sequence[Side], turn: int) -> Iterator[Side]:
    """The sides, beginning with another one each turn, with a pause before each."""
    for number in range(len(sides)):
        time.sleep(PAUSE_SECONDS)
        yield sides[(number + turn) % len(sides)]


def measure(sides: Sequence[Side], rounds: int) -> Results:
    """Everything once to warm up, then the rounds."""
    results = Results()
    for turn in range(rounds + 1):
        for side in rotated(sides, turn):
            side.decode(1)  # the first search after a pause takes longer
            for search, beams in SEARCHES.items():
                decoded = side.decode(beams)
                said = f"first token {decoded.first_token:.3f} s, step {1000 * decoded.step:.2f} ms"
                kept = f"round {turn}" if turn else "warm-up"
                print(f"  {kept}: {side.name} {side.precision}, {search}: {said}", flush=True)
                if turn:
                    results.add(side, search, decoded)
    return results


def run(generator: Path, workload: Workload, chosen: argparse.Namespace) -> Results:
    """Start every side, measure, and end them."""
    tokenizer = AutoTokenizer.from_pretrained(generator)
    ids: list[list[int]] = [tokenizer(context)["input_ids"] for context in workload.contexts()]
    tokens = [tokenizer.convert_ids_to_tokens(own) for own in ids]
    priors = torch.tensor(workload.log_priors())
    sides: list[Side] = []
    try:
        for precision in chosen.precisions:
            sides.append(Ours(generator, ids, priors, precision))
            sides.append(Theirs(generator, tokens, precision, chosen.threads))
        return measure(sides, chosen.rounds)
    finally:
        for side in sides:
            side.close()


def about(workload: Workload, chosen: argparse.Namespace) -> Mapping[str, Any]:
    """What the figures depend on."""
    own = {"kernels": "C" if native.library() is not None else "torch", "rounds": chosen.rounds}
    what = {"part": "decode_step", "shape": chosen.shape, "documents": workload.n_docs}
    length = {"document_tokens": workload.document_tokens, "steps": STEPS, "candidates": CANDIDATES}
    return {**what, **length, **own, **report.environment(chosen.threads, PACKAGES)}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m bench.decode_step", description=__doc__, formatter_class=raw)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="bart-large", help="size of the random BART")
    parser.add_argument("--threads", type=int, default=2, help="threads of whichever side computes (default 2)")
    parser.add_argument("--rounds", type=int, default=5, help="measured rounds (default 5)")
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=list(PRECISIONS), help="default: both")
    parser.add_argument("--no-save", action="store_true", help="print only; nothing goes to bench/results/")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print and append."""
    chosen = arguments(argv)
    torch.set_num_threads(chosen.threads)
    workload = Workload()
    environment = about(workload, chosen)
    results = run(model_directory(SHAPES[chosen.shape]) / "generator", workload, chosen)
    text = f"{steps_table(results)}\n{parts_table(results)}"
    print(f"\n{text}")
    if not chosen.no_save:
        print(f"appended to {report.append_run(text, results.raw(), environment)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
