"""Exact match of the running system: `python -m training.evaluate` next to `ragserve up`.

Asks the questions of NQ test, TriviaQA test and WebQuestions test whose answer stands in the top 5 passages; none of
them was trained on. Predictions are kept in the cache, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from ragserve.checkpoint import MANIFEST_NAME, sha256_of
from ragserve.client import Client
from ragserve.options import Document
from ragserve.results import Answer
from training.answers import exact_match
from training.assets import ENCODER, knowledge_vectors
from training.corpus import Summary, load_summaries
from training.embed import question_vectors
from training.packages import CACHE, Sources, fetch_sources
from training.progress import stage
from training.questions import TEST_SETS, load_questions
from training.rows import Row, answerable_rows

Ask = Callable[[Client, str], Answer]
NO_PASSAGE = (Document(title="", text=""),)
SYSTEMS: dict[str, Ask] = {
    "RAG-Token, K = 5": lambda client, question: client.generate(question, mode="token", docs=5, beams=1),
    "RAG-Sequence, K = 5": lambda client, question: client.generate(question, mode="sequence", docs=5, beams=1),
    "top passage only": lambda client, question: client.generate(question, mode="token", docs=1, beams=1),
    "no passage": lambda client, question: client.generate(question, mode="token", documents=NO_PASSAGE, beams=1),
}
IN_FLIGHT = 8  # questions asked at the same time
MISSES = 50


@dataclass(frozen=True)
class Outcome:
    """One question asked of one system."""

    system: str
    data_set: str
    question: str
    prediction: str
    right: bool


def main(argv: list[str] | None = None) -> None:
    """Ask, print the table in Markdown, write the misses."""
    arguments = _arguments(argv)
    sources = fetch_sources(arguments.cache)
    rows = test_rows(sources, arguments.demo, arguments.cache, arguments.limit)
    manifest = sha256_of(arguments.demo / "model" / MANIFEST_NAME)[:12]
    with Client(arguments.target, timeout_seconds=600) as client:
        outcomes = ask_all(client, rows, arguments.cache / f"predictions-{manifest}.jsonl")
    print(table(outcomes))
    corpus = load_summaries(sources.summaries)
    arguments.misses.write_text(misses(outcomes, rows, corpus, next(iter(SYSTEMS))), encoding="utf-8")


def test_rows(sources: Sources, demo: Path, cache: Path, limit: int) -> dict[str, list[Row]]:
    """The test questions whose answer stands in the top passages, at most `limit` of each set (0: all)."""
    corpus, passages = load_summaries(sources.summaries), knowledge_vectors(demo / "kb")
    rows = {}
    for name in TEST_SETS:
        questions = load_questions(sources.questions, name)
        with stage(f"retrieve for {name}") as bar:
            vectors = question_vectors(demo / "model" / ENCODER, questions, cache, bar.update)
            found = answerable_rows(questions, vectors, corpus, passages)
        rows[name] = random.Random(0).sample(found, min(limit or len(found), len(found)))  # noqa: S311
    return rows


def ask_all(client: Client, rows: dict[str, list[Row]], kept: Path) -> list[Outcome]:
    """Every question of every system, those in the file `kept` not again."""
    known = dict(_read(kept))
    jobs = [(system, name, row) for system in SYSTEMS for name in rows for row in rows[name]]
    missing = [job for job in jobs if (job[0], job[2].question.text) not in known]

    def ask(job: tuple[str, str, Row]) -> tuple[tuple[str, str], str]:
        system, _, row = job
        return (system, row.question.text), SYSTEMS[system](client, row.question.text).answer

    with stage("ask") as bar, kept.open("a", encoding="utf-8") as file, ThreadPoolExecutor(IN_FLIGHT) as pool:
        for done, (key, answer) in enumerate(pool.map(ask, missing), start=1):
            known[key] = answer
            file.write(json.dumps([*key, answer], ensure_ascii=False) + "\n")
            file.flush()
            bar.update(done, len(missing))
    return [_judge(system, name, row, known[system, row.question.text]) for system, name, row in jobs]


def table(outcomes: Sequence[Outcome]) -> str:
    """Exact match by system and set, in Markdown; `all` weighs every question the same."""
    cells: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for outcome in outcomes:
        for column in (outcome.data_set, "all"):
            cells[outcome.system][column].append(outcome.right)
    columns = [*dict.fromkeys(outcome.data_set for outcome in outcomes), "all"]
    sizes = {column: len(next(iter(cells.values()))[column]) for column in columns}
    lines = ["| system | " + " | ".join(f"{column} ({sizes[column]})" for column in columns) + " |"]
    lines.append("|---|" + "---:|" * len(columns))
    for system, row in cells.items():
        lines.append(f"| {system} | " + " | ".join(f"{_share(row[column]):.3f}" for column in columns) + " |")
    return "\n".join(lines)


def misses(outcomes: Sequence[Outcome], rows: dict[str, list[Row]], corpus: list[Summary], system: str) -> str:
    """A seeded sample of wrong answers with the passages that hold a right one."""
    wrong = [outcome for outcome in outcomes if outcome.system == system and not outcome.right]
    by_text = {row.question.text: row for found in rows.values() for row in found}
    blocks = []
    for outcome in random.Random(0).sample(wrong, min(MISSES, len(wrong))):  # noqa: S311
        row = by_text[outcome.question]
        holders = [corpus[passage] for passage, hit in zip(row.passages, row.hits, strict=True) if hit]
        passages = "\n".join(f"  holds it: {summary.title}: {summary.text[:300]}" for summary in holders[:2])
        answers = "; ".join(row.question.answers[:6])
        blocks.append(
            f"{outcome.data_set}: {outcome.question}\n  said: {outcome.prediction}\n  is: {answers}\n{passages}"
        )
    return "\n\n".join(blocks) + "\n"


def _judge(system: str, name: str, row: Row, prediction: str) -> Outcome:
    right = exact_match(prediction, row.question.answers)
    return Outcome(system, name, row.question.text, prediction, right)


def _share(values: Sequence[bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def _read(path: Path) -> Iterable[tuple[tuple[str, str], str]]:
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    for line in lines:
        system, question, answer = json.loads(line)
        yield (system, question), answer


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m training.evaluate", description=__doc__)
    parser.add_argument("--target", default="127.0.0.1:50051", help="the orchestrator (default: %(default)s)")
    parser.add_argument("--demo", type=Path, default=Path("demo"), help="the assets that are served (%(default)s)")
    parser.add_argument("--cache", type=Path, default=CACHE, help="packages, vectors, predictions (%(default)s)")
    parser.add_argument("--limit", type=int, default=0, help="questions of each set, drawn with a seed (0: all)")
    parser.add_argument("--misses", type=Path, default=CACHE / "misses.txt", help="sample of misses (%(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
