"""Does a retriever stall while its knowledge base changes? `python -m bench.no_stall`.

Searches come at a fixed rate, whatever the answers take (open loop: each is timed from the moment when it was due).
Meanwhile another process upserts passages, and the index is built anew and swapped again and again. Quiet and busy
latencies are of the same processes in the same run. A run takes 55 seconds; `--runs 5` repeats it with new processes
and prints the medians.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio
import lance
import numpy as np
import psutil
import pyarrow as pa

from bench.pauses import Pauses
from bench.processes import ROOT, ServiceProcess, start
from ragserve.checkpoint import load_manifest
from ragserve.serving.memory import leave_out_what_is_loaded
from ragserve.v1 import common_pb2, retriever_pb2, retriever_pb2_grpc
from retriever_svc.knowledge import DATASET_NAME, passage_encoder_hash, schema

MODEL = ROOT / "demo" / "model"
WORDS = (ROOT / "demo" / "questions.txt").read_text(encoding="utf-8").split()
DIMENSION = 384
PASSAGE_WORDS = 80
TIMEOUT_SECONDS = 600.0
SETTLE_SECONDS = 3.0
WRITER_NICENESS = 15
K = 5
MOST_TIMES_QUIET, MOST_GROWTH, LEAST_SWAPS = 2.0, 0.1, 20  # the last one of 10,000 upserts
PASSAGE_BYTES = (4 + 4 + 1) * DIMENSION + 700  # a vector in the rows, in the index and as codes, and the texts


@dataclass
class Phase:
    """Latencies in seconds of the calls that came back, the codes of those that failed, and how long it took."""

    latencies: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    stages: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    began: float = 0.0
    seconds: float = 0.0

    def row(self, name: str) -> str:
        """For the table, in milliseconds."""
        cuts = [f"{np.percentile(self.latencies, share) * 1e3:.1f}" for share in (50, 90, 99, 99.9, 100)]
        return (
            f"| {' | '.join([name, str(len(self.latencies)), str(len(self.failures)), f'{self.seconds:.0f}', *cuts])} |"
        )

    def slowest(self) -> str:
        """The 99th percentile of each stage inside the service, in milliseconds."""
        return ", ".join(f"{stage} {np.percentile(values, 99) * 1e3:.1f}" for stage, values in self.stages.items())


def some_text(rng: random.Random, n_words: int = PASSAGE_WORDS) -> str:
    """Words of the demo's questions."""
    return " ".join(rng.choices(WORDS, k=n_words))


def build(path: Path, n_passages: int) -> None:
    """A knowledge base of the demo's encoder with random vectors."""
    table_schema = schema(DIMENSION, "float32", passage_encoder_hash(MODEL, load_manifest(MODEL)))
    rng, vectors = random.Random(0), np.random.default_rng(0)

    def batches() -> Iterator[pa.RecordBatch]:
        for first in range(0, n_passages, 1_000):
            numbers = range(first, min(first + 1_000, n_passages))
            values = vectors.normal(size=(len(numbers), DIMENSION)).astype(np.float32)
            columns = {
                "id": pa.array([f"p{number}" for number in numbers]),
                "title": pa.array([f"title {number}" for number in numbers]),
                "text": pa.array([some_text(rng) for _ in numbers]),
                "embedding": pa.FixedSizeListArray.from_arrays(
                    pa.array(values.reshape(-1)), type=table_schema.field("embedding").type
                ),
                "metadata": pa.array([json.dumps({"number": number}) for number in numbers]),
            }
            yield pa.record_batch([columns[name] for name in table_schema.names], schema=table_schema)

    reader = pa.RecordBatchReader.from_batches(table_schema, batches())
    path.mkdir(parents=True)
    lance.write_dataset(reader, str(path / DATASET_NAME), schema=table_schema, enable_stable_row_ids=True)


def new_passages(first: int, count: int, rng: random.Random, *, embed: bool) -> list[retriever_pb2.NewPassage]:
    """Passages to write, with vectors unless the service shall make them."""
    vectors = np.random.default_rng(first).normal(size=(count, DIMENSION)).astype("<f4")
    return [
        retriever_pb2.NewPassage(
            passage=common_pb2.Passage(
                id=f"p{number}",
                title=f"title {number}",
                text=some_text(rng),
                metadata_json=json.dumps({"number": number}),
            ),
            vector=b"" if embed else vectors[number - first].tobytes(),
        )
        for number in range(first, first + count)
    ]


def write(target: str, first: int, upserts: int, batch: int, embed: bool, results: multiprocessing.Queue) -> None:
    """In a process of its own: upsert passages, `batch` to a commit; every other commit replaces some."""
    os.nice(WRITER_NICENESS)  # it stands for another machine
    try:
        results.put(upsert(target, first, upserts, batch, embed=embed))
    except grpc.RpcError as error:
        results.put(f"a write failed: {error.code().name}: {error.details()}")


def upsert(target: str, first: int, upserts: int, batch: int, *, embed: bool) -> list[float]:
    """The seconds that each commit took."""
    rng, seconds = random.Random(1), []
    with grpc.insecure_channel(target) as channel:
        stub = retriever_pb2_grpc.RetrieverServiceStub(channel)
        for done in range(0, upserts, batch):
            count = min(batch, upserts - done)
            where = first + done // 2 - (0 if done // batch % 2 else first)
            passages = new_passages(where, count, rng, embed=embed)
            parts = [passages[at : at + 64] for at in range(0, count, 64)]
            requests = [retriever_pb2.UpsertPassagesRequest(passages=part) for part in parts]
            began = time.monotonic()
            stub.UpsertPassages(iter(requests), timeout=TIMEOUT_SECONDS)
            seconds.append(time.monotonic() - began)
    return seconds


class Load:
    """Searches at a fixed rate."""

    def __init__(self, target: str, rate: float, *, text: bool) -> None:
        self._channel = grpc.aio.insecure_channel(target)
        self._stub = retriever_pb2_grpc.RetrieverServiceStub(self._channel)
        self._rate = rate
        rng = random.Random(2)
        vectors = np.random.default_rng(3).normal(size=(256, DIMENSION)).astype("<f4")
        self._queries = [
            retriever_pb2.Query(text=some_text(rng, 10)) if text else retriever_pb2.Query(vector=vector.tobytes())
            for vector in vectors
        ]

    async def run(self, until: asyncio.Event) -> Phase:
        """Search until told to stop."""
        phase, calls, number = Phase(), set[asyncio.Task[None]](), 0
        phase.began = time.monotonic()
        while not until.is_set():
            due = phase.began + number / self._rate
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            calls.add(asyncio.create_task(self._call(phase, number, due)))
            calls = {call for call in calls if not call.done()}
            number += 1
        await asyncio.gather(*calls)
        phase.seconds = time.monotonic() - phase.began
        return phase

    async def _call(self, phase: Phase, number: int, due: float) -> None:
        query = self._queries[number % len(self._queries)]
        request = retriever_pb2.RetrieverServiceRetrieveRequest(queries=[query], k=K)
        try:
            response = await self._stub.Retrieve(request, timeout=30)
        except grpc.aio.AioRpcError as error:
            phase.failures.append(error.code().name)
        else:
            phase.latencies.append(time.monotonic() - due)
            for timing in response.timings:
                phase.stages[timing.stage].append(timing.seconds)

    async def run_for(self, seconds: float) -> Phase:
        """Search for so long."""
        until = asyncio.Event()
        asyncio.get_running_loop().call_later(seconds, until.set)
        return await self.run(until)

    async def close(self) -> None:
        """Closes the channel."""
        await self._channel.close()


def resident_megabytes(process: ServiceProcess) -> float:
    """Resident memory of the service."""
    return float(psutil.Process(process.process.pid).memory_info().rss) / 2**20


@dataclass
class Outcome:
    """What one run measured; resident memory in megabytes."""

    quiet: Phase
    changed: Phase
    again: Phase
    before: float
    after: float
    swaps: float
    commits: Sequence[float]

    @property
    def ratio(self) -> float:
        """The p99 while written, as a multiple of the quiet one."""
        return float(
            np.percentile(self.changed.latencies, 99)
            / np.percentile([*self.quiet.latencies, *self.again.latencies], 99)
        )

    @property
    def growth(self) -> float:
        """Of the resident memory, as a share, new passages and all."""
        return self.after / self.before - 1


async def measure(process: ServiceProcess, chosen: argparse.Namespace) -> Outcome:
    """Quiet, busy, quiet again."""
    load = Load(process.target, chosen.rate, text=chosen.text)
    leave_out_what_is_loaded()  # 50 ms of this process's garbage collection would be taken for the service's
    context, first = multiprocessing.get_context("spawn"), chosen.passages
    await load.run_for(SETTLE_SECONDS)
    # A first round of writes and rebuilds, so that what is compared is one busy time with another.
    await busy(load, context, (process.target, first, chosen.upserts // 10, chosen.batch, chosen.embed))
    first += chosen.upserts // 10
    await asyncio.sleep(SETTLE_SECONDS)
    before, swaps = resident_megabytes(process), process.metric("ragserve_index_swap_seconds_count")
    quiet = await load.run_for(chosen.seconds)
    changed, commits = await busy(load, context, (process.target, first, chosen.upserts, chosen.batch, chosen.embed))
    await asyncio.sleep(SETTLE_SECONDS)
    after, swaps = resident_megabytes(process), process.metric("ragserve_index_swap_seconds_count") - swaps
    again = await load.run_for(chosen.seconds)
    await load.close()
    return Outcome(quiet, changed, again, before, after, swaps, commits)


def show(outcome: Outcome, chosen: argparse.Namespace, pauses: Pauses) -> None:
    """Print one run."""
    print("| load | calls | failed | seconds | p50, ms | p90 | p99 | p99.9 | max | machine's longest pause |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    phases = {"quiet": outcome.quiet, "while written and rebuilt": outcome.changed, "quiet again": outcome.again}
    for name, phase in phases.items():
        longest = pauses.longest(phase.began, phase.began + phase.seconds)
        print(f"{phase.row(name)} {longest * 1e3:.0f} |")
    for name, phase in list(phases.items())[:2]:
        print(f"p99 of stages, ms, {name}: {phase.slowest()}")
    print(f"p99 while written: {outcome.ratio:.2f} of the quiet one; rebuilds swapped in: {outcome.swaps:.0f}")
    new = chosen.upserts / 2 * PASSAGE_BYTES / 2**20
    print(f"resident memory: {outcome.before:.0f} MB before, {outcome.after:.0f} MB after ({outcome.growth:+.1%}),")
    without = (outcome.after - new) / outcome.before - 1
    print(f"of which {new:.0f} MB are the new passages ({without:+.1%} without them)")
    median, slowest = np.median(outcome.commits) * 1e3, max(outcome.commits) * 1e3
    print(f"commits of {chosen.batch}, ms: median {median:.0f}, slowest {slowest:.0f}", flush=True)


async def busy(load: Load, context: multiprocessing.context.SpawnContext, work: tuple) -> tuple[Phase, Sequence[float]]:
    """The load while another process writes, and how long its commits took."""
    results = context.Queue()
    writer = context.Process(target=write, args=(*work, results))
    writer.start()
    until = asyncio.Event()

    async def wait() -> Sequence[float]:
        seconds: Sequence[float] | str = await asyncio.to_thread(results.get)
        until.set()
        if isinstance(seconds, str):
            raise SystemExit(seconds)
        return seconds

    phase, seconds = await asyncio.gather(load.run(until), wait())
    await asyncio.to_thread(writer.join)
    return phase, seconds


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.no_stall", description=__doc__)
    parser.add_argument("--passages", type=int, default=20_000, help="passages there at first (default 20,000)")
    parser.add_argument("--upserts", type=int, default=10_000, help="passages upserted (default 10,000)")
    parser.add_argument("--batch", type=int, default=100, help="passages in one commit (default 100)")
    parser.add_argument("--rebuild-rows", type=int, default=500, help="changed rows that cause a rebuild (default 500)")
    parser.add_argument("--rate", type=float, default=50, help="searches a second (default 50)")
    parser.add_argument("--seconds", type=float, default=20, help="length of each quiet phase (default 20)")
    parser.add_argument("--text", action="store_true", help="ask questions that the service encodes, not vectors")
    parser.add_argument("--embed", action="store_true", help="let the service embed the passages")
    parser.add_argument("--factory", default="Flat", help="FAISS index_factory (default Flat)")
    parser.add_argument("--runs", type=int, default=1, help="repeat all of it with new processes (default 1)")
    parser.add_argument("--disk", action="store_true", help="read passages from disk, not memory")
    return parser.parse_args(argv)


def run(chosen: argparse.Namespace) -> Outcome:
    """Build, start, measure, print."""
    with tempfile.TemporaryDirectory(prefix="ragserve-no-stall-") as directory, Pauses() as pauses:
        home = Path(directory)
        build(home / "kb", chosen.passages)
        flags = {
            "model": MODEL,
            "knowledge": home / "kb",
            "device": "cpu",
            "threads": 1,
            "index_factory": chosen.factory,
            "rebuild_min_rows": chosen.rebuild_rows,
            "rebuild_fraction": 1e-9,
            "passages_in_memory_bytes": 0 if chosen.disk else 2 * 2**30,
        }
        process = start("retriever_svc", flags, home / "logs")
        try:
            process.wait_healthy()
            outcome = asyncio.run(measure(process, chosen))
        finally:
            process.stop()
        show(outcome, chosen, pauses)
        return outcome


def main(argv: Sequence[str] | None = None) -> int:
    """Run so often, and print what the runs have in common."""
    chosen = arguments(argv)
    outcomes = [run(chosen) for _ in range(chosen.runs)]
    ratio, growth, swaps = (
        float(np.median([getattr(one, name) for one in outcomes])) for name in ("ratio", "growth", "swaps")
    )
    failed = sum(len(phase.failures) for one in outcomes for phase in (one.quiet, one.changed, one.again))
    print(f"\nmedians of {chosen.runs}: p99 while written {ratio:.2f} of the quiet one (2 required), resident memory")
    print(f"{growth:+.1%} with the new passages (10 % allowed); rebuilds swapped in: {swaps:.0f} ({LEAST_SWAPS}")
    print(f"required); failed calls: {failed} (none allowed)")
    met = ratio <= MOST_TIMES_QUIET and growth <= MOST_GROWTH and swaps >= LEAST_SWAPS and not failed
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
