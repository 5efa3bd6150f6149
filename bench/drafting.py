"""What guessing tokens from the passages saves on the demo's model: `python -m bench.drafting`.

Real test questions (NQ, TriviaQA, WebQuestions; none trained on) through the three services, RAG-Token, greedy, one
question at a time. One generator and orchestrator for each number of tokens that may be guessed, the same retriever;
the sides take turns in blocks of questions. Answers must be the same.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench import CACHE, report
from bench.precision import DEMO, TIMEOUT_SECONDS, started
from bench.processes import ServiceProcess
from generator_svc.models.numerics import NUMERICS
from ragserve.client import Client
from training.evaluate import test_rows
from training.packages import CACHE as TRAINING_CACHE
from training.packages import fetch_sources

BLOCK = 8  # questions of one side before the next one's turn
PAUSE_SECONDS = 0.1  # at a change of sides: lets the other's threads fall asleep
DECODING = ("generator.decode_step", "decode_step")  # stages
COUNTERS = ("ragserve_drafted_tokens_total", "ragserve_accepted_tokens_total")


@dataclass
class Side:
    """A system that may guess so many tokens, and what it answered."""

    draft_tokens: int
    orchestrator: ServiceProcess
    client: Client
    seconds: list[float] = field(default_factory=list)
    decoding: list[float] = field(default_factory=list)
    tokens: list[tuple[int, ...]] = field(default_factory=list)

    def ask(self, question: str) -> None:
        """Answer one question."""
        begin = time.perf_counter()
        answer = self.client.generate(question, mode="token", docs=5, beams=1)
        self.seconds.append(time.perf_counter() - begin)
        self.decoding.append(sum(answer.timings_seconds.get(stage, 0.0) for stage in DECODING))
        self.tokens.append(answer.token_ids)

    def counters(self) -> tuple[float, ...]:
        """Tokens guessed so far, and those of them that were chosen."""
        return tuple(self.orchestrator.metric(name) for name in COUNTERS)


@dataclass(frozen=True)
class Found:
    """One side beside the one that does not guess; seconds are medians of a question."""

    draft_tokens: int
    questions: int
    generated: int
    drafted: int
    accepted: int
    seconds: float
    decoding: float
    decoding_ratio: float  # of all questions together: without guesses / with them
    same_tokens: bool


def compare(side: Side, plain: Side) -> Found:
    """A side's answers beside those without guesses."""
    drafted, accepted = side.counters()
    return Found(
        side.draft_tokens,
        len(side.tokens),
        sum(map(len, side.tokens)),
        int(drafted),
        int(accepted),
        statistics.median(side.seconds),
        statistics.median(side.decoding),
        sum(plain.decoding) / sum(side.decoding),
        side.tokens == plain.tokens,
    )


def table(rows: Sequence[Found]) -> str:
    """In Markdown."""
    lines = [
        "| guessed at most | tokens of all answers | guessed | of them right | ms a question | of them decoding |"
        " decoding, times as fast | same tokens |",
        "|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {row.draft_tokens} | {row.generated} | {row.drafted} | {row.accepted} | {1000 * row.seconds:.1f} |"
        f" {1000 * row.decoding:.1f} | {row.decoding_ratio:.2f}x | {'yes' if row.same_tokens else 'NO'} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def blocks(questions: Sequence[str]) -> list[Sequence[str]]:
    """The questions in their order, a block at a time."""
    return [questions[start : start + BLOCK] for start in range(0, len(questions), BLOCK)]


def measure(drafts: Sequence[int], questions: Sequence[str], precision: str, threads: int) -> list[Found]:
    """All sides, taking turns."""
    logs = Path(CACHE).resolve() / "logs"
    with ExitStack() as stack:
        flags = {"model": DEMO / "model", "knowledge": DEMO / "kb", "threads": 1, "query_cache_entries": 4096}
        retriever = started(stack, "retriever_svc", flags, logs, 1)
        sides = []
        for count in drafts:
            flags = {"model": DEMO / "model", "precision": precision, "draft_tokens": count}
            generator = started(stack, "generator_svc", flags, logs, threads)
            targets: dict[str, object] = {"retriever": retriever.target, "generator": generator.target}
            orchestrator = started(stack, "orchestrator", targets, logs, 1)
            client = stack.enter_context(Client(orchestrator.target, timeout_seconds=TIMEOUT_SECONDS))
            sides.append(Side(count, orchestrator, client))
        for number, block in enumerate(blocks(questions)):
            for turn in range(len(sides)):
                time.sleep(PAUSE_SECONDS)
                for question in block:
                    sides[(number + turn) % len(sides)].ask(question)
            print(f"\r{min(len(questions), (number + 1) * BLOCK)} of {len(questions)} questions", end="", flush=True)
        print()
        return [compare(side, sides[0]) for side in sides]


def main(argv: Sequence[str] | None = None) -> int:
    """Ask, print and append."""
    parser = argparse.ArgumentParser(prog="python -m bench.drafting", description=__doc__)
    parser.add_argument("--limit", type=int, default=40, help="questions of each set (default 40; 0: all)")
    parser.add_argument("--drafts", type=int, nargs="+", default=[2, 4, 8], help="besides 0 (default 2 4 8)")
    parser.add_argument("--precision", choices=sorted(NUMERICS), default="float32", help="default float32")
    parser.add_argument("--threads", type=int, default=2, help="threads of the generator (default 2)")
    parser.add_argument("--no-save", action="store_true", help="print only; nothing goes to bench/results/")
    options = parser.parse_args(argv)
    rows = test_rows(fetch_sources(TRAINING_CACHE), DEMO, TRAINING_CACHE, options.limit)
    questions = [row.question.text for found in rows.values() for row in found]
    found = measure([0, *options.drafts], questions, options.precision, options.threads)
    print(table(found))
    if not options.no_save:
        about = {"benchmark": "drafting", "precision": options.precision, **report.environment(options.threads)}
        print(f"appended to {report.append_run(table(found), [asdict(row) for row in found], about)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
