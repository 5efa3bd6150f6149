"""What each precision of the generator changes on the demo's model: `python -m bench.precision`.

Real test questions (NQ, TriviaQA, WebQuestions; none trained on) whose answer stands in the top five passages, through
the three services, RAG-Token, greedy. One generator and orchestrator for each precision, the same retriever.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import CACHE, report
from bench.processes import ROOT, ServiceProcess, start
from generator_svc.models.numerics import NUMERICS
from ragserve.client import Client
from training.answers import exact_match
from training.evaluate import test_rows
from training.packages import CACHE as TRAINING_CACHE
from training.packages import fetch_sources
from training.questions import Question

DEMO = ROOT / "demo"
EXACT = "float32"
IN_FLIGHT = 8
TIMEOUT_SECONDS = 600.0
KEPT_BYTES = 2**30


@dataclass(frozen=True)
class Outcome:
    """One question under one precision; `reference_log_prob` is log p of the answer that float32 gave, if not empty."""

    answer: str
    right: bool
    reference_log_prob: float | None


@dataclass(frozen=True)
class Agreement:
    """A precision beside float32, over all questions: shares, and nats."""

    precision: str
    questions: int
    exact_match: float
    same_answer: float
    mean_difference: float  # of |log p| of float32's answer
    mean_difference_per_answer: float  # signed: below 0 where the precision gives the answer less


def ask(client: Client, questions: Sequence[Question], references: Sequence[str] | None) -> list[Outcome]:
    """Answers, and the log-probability of the reference answers (by default the own ones)."""

    def one(number: int) -> Outcome:
        question = questions[number]
        answer = client.generate(question.text, mode="token", docs=5, beams=1).answer
        reference = answer if references is None else references[number]
        log_prob = client.score(question.text, reference, mode="token", docs=5).log_prob if reference else None
        return Outcome(answer, exact_match(answer, question.answers), log_prob)

    with ThreadPoolExecutor(IN_FLIGHT) as pool:
        return list(pool.map(one, range(len(questions))))


def compare(precision: str, outcomes: Sequence[Outcome], exact: Sequence[Outcome]) -> Agreement:
    """A precision's outcomes beside those of float32."""
    pairs = list(zip(outcomes, exact, strict=True))
    log_probs = [(own.reference_log_prob, other.reference_log_prob) for own, other in pairs]
    differences = [own - other for own, other in log_probs if own is not None and other is not None]
    return Agreement(
        precision,
        len(pairs),
        statistics.mean(own.right for own, _ in pairs),
        statistics.mean(own.answer == other.answer for own, other in pairs),
        statistics.mean(map(abs, differences)),
        statistics.mean(differences),
    )


def table(rows: Sequence[Agreement]) -> str:
    """In Markdown."""
    lines = [
        "| precision | questions | exact match | same answer as float32 | mean difference of log p, nats | mean |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        cells = (f"{row.exact_match:.3f}", f"{row.same_answer:.3f}", f"{row.mean_difference:.4f}")
        lines.append(
            f"| {row.precision} | {row.questions} | {' | '.join(cells)} | {row.mean_difference_per_answer:+.4f} |"
        )
    return "\n".join(lines) + "\n"


def measure(precisions: Sequence[str], questions: Sequence[Question], threads: int, device: str) -> list[Agreement]:
    """One system after the other, float32 first."""
    logs = Path(CACHE).resolve() / "logs"
    exact: list[Outcome] = []
    found = []
    with ExitStack() as stack:
        flags = {"model": DEMO / "model", "knowledge": DEMO / "kb", "threads": 1, "query_cache_entries": 4096}
        retriever = started(stack, "retriever_svc", flags, logs, 1)
        for precision in [EXACT, *(name for name in precisions if name != EXACT)]:
            print(f"{precision}: {len(questions)} questions", flush=True)
            with ExitStack() as pair:
                # A question is answered and then scored: its documents are encoded once.
                flags = {"model": DEMO / "model", "precision": precision, "device": device}
                flags["encoder_cache_bytes"] = KEPT_BYTES
                generator = started(pair, "generator_svc", flags, logs, threads)
                targets: dict[str, object] = {"retriever": retriever.target, "generator": generator.target}
                orchestrator = started(pair, "orchestrator", targets, logs, 1)
                client = pair.enter_context(Client(orchestrator.target, timeout_seconds=TIMEOUT_SECONDS))
                outcomes = ask(client, questions, [outcome.answer for outcome in exact] or None)
            exact = exact or outcomes
            found.append(compare(precision, outcomes, exact))
            print(table(found), flush=True)
    return found


def started(stack: ExitStack, module: str, flags: dict[str, object], logs: Path, threads: int) -> ServiceProcess:
    """A healthy service, stopped with the stack."""
    process = start(module, flags, logs, threads=threads)
    stack.callback(process.stop)
    process.wait_healthy()
    return process


def main(argv: Sequence[str] | None = None) -> int:
    """Ask, print and append."""
    parser = argparse.ArgumentParser(prog="python -m bench.precision", description=__doc__)
    parser.add_argument("--limit", type=int, default=0, help="questions of each set (default 0: all)")
    parser.add_argument("--precisions", nargs="+", choices=sorted(NUMERICS), default=["float32", "int8"])
    parser.add_argument("--threads", type=int, default=2, help="threads of the generator (default 2)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the generator (default cpu)")
    parser.add_argument("--no-save", action="store_true", help="print only; nothing goes to bench/results/")
    options = parser.parse_args(argv)
    rows = test_rows(fetch_sources(TRAINING_CACHE), DEMO, TRAINING_CACHE, options.limit)
    questions = [row.question for found in rows.values() for row in found]
    found = measure(options.precisions, questions, options.threads, options.device)
    if not options.no_save:
        about = {"benchmark": "precision", **report.environment(options.threads)}
        print(f"appended to {report.append_run(table(found), [asdict(row) for row in found], about)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
