"""A decode step's bytes on the wire, and its time outside the forward pass: `python -m bench.wire`.

RAG-token, greedy and with 4 beams, 5 and 50 documents of 160 tokens.

- Bytes: of the requests and responses of steps (`Advance`), serialized, as the orchestrator's own client has them.
- Time: from the stages that the real services report for answers of 1 and of 21 tokens; the difference, over 20 steps,
  leaves out what is done once. "Around" is all that is neither the forward pass nor the generator's selection: gRPC,
  protobuf, waking threads (queue, wire), marginalization and search (marginalize), and the rest of the orchestrator.
- Alone: the orchestrator's pipeline in this process on the recorded steps of such an answer, with no generator to wait
  for: marginals and search, and the whole pipeline with them.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench import options, report
from bench.replay import Recording, RecordingClient, Replay
from bench.system import TIMEOUT_SECONDS, Ragserve, request
from bench.workload import SHAPES, Workload, model_directory
from orchestrator.convert import generate_from_proto
from orchestrator.deadline import Deadline
from orchestrator.downstream.clients import RetrieverClient
from orchestrator.pipeline import Generator, Pipeline
from orchestrator.requests import GenerateAsk, GeneratorInfo
from orchestrator.settings import OrchestratorSettings
from orchestrator.stages import MARGINALIZE, OTHER, WIRE
from ragserve.serving.metrics import Metrics
from training.progress import stage

STEPS = 20
LONG = Workload(new_tokens=1 + STEPS)
SEARCHES = {"greedy": 1, "4 beams": 4}
FORWARD, SELECT, AROUND = "decode_step", "select", ("queue", WIRE, MARGINALIZE, OTHER)
GOAL_MS = 2.0
REPLAYS = 20
NOBODY = "127.0.0.1:1"  # the documents come with the request: no retriever is asked


@dataclass(frozen=True)
class Measured:
    """Of one step: bytes, and seconds by stage."""

    precision: str
    search: str
    documents: int
    sent: float
    received: float
    stages: Mapping[str, float]
    alone: float  # marginals and search, on recorded steps
    pipeline: float  # all of the orchestrator without gRPC, on recorded steps

    @property
    def around(self) -> float:
        """Seconds that are neither the forward pass nor the selection."""
        return sum(self.stages[name] for name in AROUND)


def per_step(short: Sequence[Mapping[str, float]], long: Sequence[Mapping[str, float]], steps: int) -> dict[str, float]:
    """Stages of answers of 1 and of 1 + `steps` tokens, some of each, to the seconds of one step: by medians."""
    medians = [
        {name: statistics.median(one.get(name, 0.0) for one in answers) for name in (FORWARD, SELECT, *AROUND)}
        for answers in (short, long)
    ]
    return {name: (value - medians[0][name]) / steps for name, value in medians[1].items()}


def stages_of(system: Ragserve, beams: int, workload: Workload, repeats: int, name: str) -> dict[str, float]:
    """Of a step, through both services; short and long answers take turns."""
    short, long = list[dict[str, float]](), list[dict[str, float]]()
    with stage(name) as bar:
        for number in range(repeats):
            for answers, tokens in ((short, 1), (long, workload.new_tokens)):
                answers.append(system.generate("token", beams, replace(workload, new_tokens=tokens))[1])
            bar.update(number + 1, repeats, "pairs of answers")
    return per_step(short, long, STEPS)


async def record(target: str, beams: int, workload: Workload) -> tuple[GeneratorInfo, Recording]:
    """One answer by the orchestrator's pipeline in this process, from the real generator."""
    client = RecordingClient(target, OrchestratorSettings(), Metrics())
    try:
        await client.ready(TIMEOUT_SECONDS)
        async with answering(client) as pipeline:
            await pipeline.generate(asked(beams, workload), Deadline.after(TIMEOUT_SECONDS))
        return await client.info(Deadline.after(TIMEOUT_SECONDS)), client.recording
    finally:
        await client.close()


@asynccontextmanager
async def answering(generator: Generator) -> AsyncIterator[Pipeline]:
    """A pipeline around a generator."""
    settings = OrchestratorSettings()
    retriever = RetrieverClient(NOBODY, settings)
    try:
        yield Pipeline(retriever, generator, settings, Metrics())
    finally:
        await retriever.close()


def asked(beams: int, workload: Workload) -> GenerateAsk:
    """As the servicer hands it to the pipeline."""
    return generate_from_proto(request("token", beams, workload))


async def replayed(info: GeneratorInfo, recording: Recording, beams: int, workload: Workload) -> tuple[float, float]:
    """Seconds of a step: marginals and search, and the pipeline as a whole."""
    marginals, whole, ask = list[float](), list[float](), asked(beams, workload)
    async with answering(Replay(info, recording)) as pipeline:
        for _ in range(1 + REPLAYS):
            begin = time.perf_counter()
            given = await pipeline.generate(ask, Deadline.after(TIMEOUT_SECONDS))
            whole.append((time.perf_counter() - begin) / workload.new_tokens)
            seconds = next(one.seconds for one in given.timings if one.stage == MARGINALIZE)
            marginals.append(seconds / workload.new_tokens)
    return statistics.median(marginals[1:]), statistics.median(whole[1:])


def measure(system: Ragserve, search: str, workload: Workload, repeats: int) -> Measured:
    """One row of the tables."""
    beams, what = SEARCHES[search], f"{system.precision}, {search}, {workload.n_docs} documents"
    with stage(f"{what}: recorded"):
        info, recording = asyncio.run(record(system.generator.target, beams, workload))
    steps = [one for one in recording.exchanges if one.kind == "advance"]
    sent, received = (statistics.mean(getattr(one, name) for one in steps) for name in ("sent", "received"))
    alone = asyncio.run(replayed(info, recording, beams, workload))
    stages = stages_of(system, beams, workload, repeats, what)
    return Measured(system.precision, search, workload.n_docs, sent, received, stages, *alone)


def bytes_table(rows: Sequence[Measured]) -> str:
    """They depend on search and documents only."""
    first = {(one.search, one.documents): one for one in reversed(rows)}
    cells = [
        [one.search, str(one.documents), f"{one.sent:,.0f}", f"{one.received:,.0f}"]
        for one in rows
        if one is first[one.search, one.documents]
    ]
    return report.markdown(["search", "documents", "request, bytes a step", "response, bytes a step"], cells) + "\n"


def times_table(rows: Sequence[Measured]) -> str:
    """Milliseconds of one step."""
    cells = []
    for one in rows:
        seconds = [one.stages[name] for name in (FORWARD, SELECT, *AROUND)]
        seconds += [one.around, one.around + one.stages[SELECT], one.alone, one.pipeline]
        said = report.verdict(1000 * one.around, GOAL_MS, most=True)
        what = f"{one.precision}, {one.search}, {one.documents} documents"
        cells.append([what, said, *(f"{1000 * value:.2f}" for value in seconds)])
    head = ["ms of a step", "goal of around", "forward", "select", *AROUND, "around", "around + select"]
    return report.markdown([*head, "alone: marginals, search", "alone: pipeline"], cells, 2) + "\n"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = options.parser("wire", __doc__, ["int8"])
    parser.add_argument("--documents", nargs="+", type=int, default=[5, 50], help="default 5 50")
    parser.add_argument("--repeats", type=int, default=3, help="pairs of answers for each row (default 3)")
    return parser.parse_args(argv)


def about(chosen: argparse.Namespace) -> Mapping[str, Any]:
    """What the figures depend on."""
    what = {"part": "wire", "shape": chosen.shape, "document_tokens": LONG.document_tokens, "steps": STEPS}
    return {**what, "repeats": chosen.repeats, **report.environment(chosen.threads)}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure each precision with services of its own, print and append."""
    chosen = arguments(argv)
    environment, model = about(chosen), model_directory(SHAPES[chosen.shape])
    rows: list[Measured] = []
    for precision in chosen.precisions:
        placed: dict[str, Any] = {"threads": chosen.threads, "precision": precision}
        with closing(Ragserve(model, LONG, options.logs(), **placed)) as system:
            system.wait_healthy()
            system.generate("token", 1)  # the first answer takes longer
            for n_docs in chosen.documents:
                own = replace(LONG, n_docs=n_docs)
                rows += [measure(system, search, own, chosen.repeats) for search in SEARCHES]
    text = f"{bytes_table(rows)}\n{times_table(rows)}"
    print(f"\n{text}")
    if not chosen.no_save:
        print(f"appended to {report.append_run(text, [asdict(row) for row in rows], environment)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
