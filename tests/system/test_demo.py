"""The shipped demo: right answers to real questions, and the time of every stage."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from bench.processes import ROOT, ServiceProcess, running, start
from ragserve.client import Client
from ragserve_cli.demo import read_questions
from tests.system.harness import scrape
from tests.system.test_metrics import STAGES, TOLERANCE
from training.answers import exact_match

DEMO = ROOT / "demo"
MAX_BYTES = 120 * 2**20
WORK = {name: [stage for stage in STAGES[name] if stage not in ("wire", "other")] for name in STAGES}
# Answers to the questions of demo/questions.txt, in their order.
ANSWERS = ("Charles Darwin", "Nile", "Antonio Vivaldi", "Bogotá", "Au", "Romania")


@dataclass(frozen=True)
class Demo:
    services: dict[str, ServiceProcess]
    client: Client

    def totals(self) -> dict[str, float]:
        """Seconds of each stage since the start."""
        found = {name: scrape(process) for name, process in self.services.items()}
        work = {
            f"{name}.{stage}": found[name].get(f"ragserve_{stage}_seconds_sum", 0.0)
            for name in WORK
            for stage in WORK[name]
        }
        return {**work, "request": found["orchestrator"].get("ragserve_request_seconds_sum", 0.0)}


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    logs, model = tmp_path_factory.mktemp("demo"), DEMO / "model"
    retriever = start("retriever_svc", {"model": model, "knowledge": DEMO / "kb"}, logs)
    generator = start("generator_svc", {"model": model}, logs, threads=2)
    orchestrator = start("orchestrator", {"retriever": retriever.target, "generator": generator.target}, logs)
    services = {"retriever": retriever, "generator": generator, "orchestrator": orchestrator}
    with running(*services.values()), Client(orchestrator.target, timeout_seconds=60) as client:
        yield Demo(services, client)


def test_the_sample_questions_are_answered_right(demo: Demo) -> None:
    questions = read_questions(DEMO / "questions.txt")
    assert len(questions) == len(ANSWERS)
    for question, answer in zip(questions, ANSWERS, strict=True):
        found = demo.client.generate(question)
        assert exact_match(found.answer, [answer]), f"{question}: {found.answer}"
        assert any(answer in passage.text for passage in found.passages)


@pytest.mark.parametrize("mode", ["token", pytest.param("sequence", marks=pytest.mark.long)])
def test_what_the_services_measure_adds_up_to_the_whole(demo: Demo, mode: str) -> None:
    """Without what is only a remainder: the time on the wire, and what the orchestrator did besides."""
    before, begun = demo.totals(), time.monotonic()
    for question in read_questions(DEMO / "questions.txt")[:3]:
        demo.client.generate(question, mode=mode, beams=4)
    waited, after = time.monotonic() - begun, demo.totals()
    grown = {name: after[name] - before[name] for name in after}
    whole = grown.pop("request")
    assert sum(grown.values()) == pytest.approx(whole, rel=TOLERANCE), grown
    assert whole == pytest.approx(waited, rel=TOLERANCE)


def test_the_assets_are_small() -> None:
    files = [path for path in DEMO.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES
    data = [path for path in files if path.suffix in (".jsonl", ".csv", ".tsv", ".parquet")]
    assert {path.parent.name for path in data} == {"hot_swap"}  # no other data set


def test_the_licences_are_named() -> None:
    notice = (DEMO / "NOTICE").read_text(encoding="utf-8")
    for name in sorted(path.name for part in ("model", "") for path in (DEMO / part).iterdir() if path.is_dir()):
        assert f"{name}/" in notice
