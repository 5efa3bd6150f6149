"""What concurrent clients get, over gRPC from the real services: `python -m bench.concurrency`.

- Throughput: N clients, each asking for one answer after the other (RAG-token, greedy, 5 documents of 160 tokens, 8 new
  tokens), against one client. A point begins when all ask their first question and ends with the last answer.
- Latency: one client asks short questions one after the other, tiny ones (1 document of 40 tokens, 4 new tokens) or
  ordinary ones (5 documents of 160 tokens, 8 new tokens): first alone, then while 16 others have long answers written
  (5 documents of 160 tokens, 400 new tokens, one answer after the other). Counting begins when the documents of all 16
  are encoded.

- Passes: the model's passes for one answer and for 16 together, without services (`bench/batching.py`): the most that
  any scheduling could give.

No two requests have a document in common, and every client has a connection of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import statistics
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from bench import options, report
from bench.batching import Together, table, together
from bench.fit import growth, quantile
from bench.system import TIMEOUT_SECONDS, Ragserve
from bench.workload import SHAPES, Workload, model_directory
from ragserve.client import AsyncClient
from ragserve.options import Document
from training.progress import Bar, stage

ANSWER = Workload(new_tokens=8)
SHORTS = {"tiny": Workload(n_docs=1, document_tokens=40, new_tokens=4), "ordinary": ANSWER}
N_LONG = 16
LEAST_ANSWERS = 4  # of a point, however few clients it has
WARM_UP = 5
POLL_SECONDS = 0.2
# Answers a second with 16 clients over those with one, and the short requests' p99 under load over that alone.
COMPARED, THROUGHPUT_GOAL, THROUGHPUT_LEAST = 16, 1.8, 1.3
LATENCY_GOAL, LATENCY_MOST = 3.0, 5.0
# Room for the sessions of 64 clients, those that are just ending included.
ROOM = {"max_sessions": 256, "cache_bytes": 16 * 2**30}
PARTS = ("throughput", "latency", "passes")


@dataclass(frozen=True)
class Point:
    """Requests of one kind: how many clients asked, from the first question to the last answer, and each one's time."""

    precision: str
    name: str
    clients: int
    seconds: float
    latencies: Sequence[float]  # seconds

    @property
    def per_second(self) -> float:
        """Answers a second."""
        return len(self.latencies) / self.seconds

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.latencies)

    @property
    def p99(self) -> float:
        """Seconds."""
        return quantile(self.latencies, 0.99)


class Load:
    """Clients of one orchestrator."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._seeds = itertools.count(1)

    @asynccontextmanager
    async def clients(self, count: int) -> AsyncIterator[list[AsyncClient]]:
        """So many, closed at the end."""
        async with AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(AsyncClient(self._target, timeout_seconds=TIMEOUT_SECONDS))
                for _ in range(count)
            ]

    async def ask(self, client: AsyncClient, workload: Workload) -> float:
        """The seconds that one answer took, from documents that nobody had before.

        Raises:
            RuntimeError: it has another length than asked for.
        """
        own = replace(workload, seed=next(self._seeds))
        texts = zip(own.texts(), own.log_priors(), strict=True)
        documents = [Document(own.title, text, prior) for text, prior in texts]
        begin = time.perf_counter()
        answer = await client.generate(
            own.question, documents=documents, mode="token", beams=1, min_length=own.length, max_length=own.length
        )
        taken = time.perf_counter() - begin
        if len(answer.token_ids) != own.new_tokens:
            raise RuntimeError(f"an answer of {len(answer.token_ids)} tokens where {own.new_tokens} were asked for")
        return taken

    async def repeat(self, client: AsyncClient, workload: Workload) -> None:
        """Ask until cancelled."""
        while True:
            await self.ask(client, workload)


async def throughput(load: Load, precision: str, n_clients: int, each: int) -> Point:
    """Every client asks for `each` answers, one after the other."""
    each, done = max(each, -(-LEAST_ANSWERS // n_clients)), itertools.count(1)

    async def one(client: AsyncClient, bar: Bar) -> list[float]:
        taken = []
        for _ in range(each):
            taken.append(await load.ask(client, ANSWER))
            bar.update(next(done), each * n_clients, "answers")
        return taken

    with stage(f"{precision}, {n_clients} clients") as bar:
        async with load.clients(n_clients) as clients:
            begin = time.perf_counter()
            latencies = await asyncio.gather(*(one(client, bar) for client in clients))
            seconds = time.perf_counter() - begin
    return Point(precision, "answers", n_clients, seconds, list(itertools.chain(*latencies)))


async def short_requests(load: Load, precision: str, kind: str, where: str, chosen: argparse.Namespace) -> Point:
    """Short requests, one after the other, until there are enough or the time is up."""
    latencies: list[float] = []
    name = f"{kind}, {where}"
    with stage(f"{precision}, short requests, {name}") as bar:
        async with load.clients(1) as (client,):
            begin = time.perf_counter()
            while len(latencies) < chosen.shorts and time.perf_counter() - begin < chosen.seconds:
                latencies.append(await load.ask(client, SHORTS[kind]))
                bar.update(len(latencies), chosen.shorts, f"median {statistics.median(latencies):.3f} s")
            seconds = time.perf_counter() - begin
    return Point(precision, name, 1, seconds, latencies)


async def beside_long_ones(
    load: Load, precision: str, encoded: Callable[[], float], chosen: argparse.Namespace
) -> list[Point]:
    """The same while N_LONG clients have long answers written; `encoded` says how many tokens the encoder has read."""
    long = Workload(new_tokens=chosen.long_tokens)
    enough = encoded() + N_LONG * long.n_docs * long.document_tokens
    async with load.clients(N_LONG) as clients:
        long_ones = [asyncio.create_task(load.repeat(client, long)) for client in clients]

        async def measured() -> list[Point]:
            with stage(f"{precision}, documents of {N_LONG} long answers"):
                while await asyncio.to_thread(encoded) < enough:  # noqa: ASYNC110
                    await asyncio.sleep(POLL_SECONDS)
            return [
                await short_requests(load, precision, kind, f"beside {N_LONG} long ones", chosen)
                for kind in chosen.kinds
            ]

        measuring = asyncio.create_task(measured())
        try:
            done, _ = await asyncio.wait([measuring, *long_ones], return_when=asyncio.FIRST_COMPLETED)
            for task in done & set(long_ones):
                task.result()  # which raises: they end in no other way
            return measuring.result()
        finally:
            for task in (measuring, *long_ones):
                task.cancel()
            await asyncio.gather(measuring, *long_ones, return_exceptions=True)


async def measure(system: Ragserve, precision: str, chosen: argparse.Namespace) -> list[Point]:
    """All points of one precision."""
    load, points = Load(system.orchestrator.target), []
    async with load.clients(1) as (client,):
        for workload in (ANSWER, *[SHORTS["tiny"]] * WARM_UP):
            await load.ask(client, workload)
    if "throughput" in chosen.parts:
        points += [await throughput(load, precision, n_clients, chosen.answers) for n_clients in chosen.clients]
    if "latency" in chosen.parts:
        alone = [await short_requests(load, precision, kind, "alone", chosen) for kind in chosen.kinds]
        loaded = await beside_long_ones(load, precision, lambda: encoded_tokens(system), chosen)
        points += itertools.chain(*zip(alone, loaded, strict=True))
    return points


def encoded_tokens(system: Ragserve) -> float:
    """Context tokens that the generator's encoder has read so far."""
    return system.generator.metric("ragserve_prefill_tokens_total")


def throughput_table(points: Sequence[Point]) -> str:
    """Answers a second by the number of clients, and how an answer's time grows with it."""
    rows, notes = [], []
    for precision in dict.fromkeys(point.precision for point in points):
        own = [point for point in points if point.precision == precision]
        ratios = {point.clients: point.per_second / own[0].per_second for point in own}
        for one in own:
            figures = [f"{one.per_second:.3f}", f"{ratios[one.clients]:.2f}×", f"{one.median:.2f}", f"{one.p99:.2f}"]
            rows.append([precision, str(one.clients), str(len(one.latencies)), *figures])
        if own[0].clients == 1 and COMPARED in ratios:
            said = report.verdict(ratios[COMPARED], THROUGHPUT_GOAL, THROUGHPUT_LEAST)
            notes.append(f"{precision}, {COMPARED} clients over one: {ratios[COMPARED]:.2f}×, {said}.")
        if len(own) > 1:
            found = growth([one.clients for one in own], [one.median for one in own])
            notes.append(f"{precision}: {found.slope:.2f} s a client, time ~ clients^{found.exponent:.2f}.")
    head = ["precision", "clients", "answers", "answers/s", "of the first", "p50, s", "p99, s"]
    return report.markdown(head, rows) + "".join(f"\n\n{note}" for note in notes) + "\n"


def latency_table(points: Sequence[Point]) -> str:
    """Short requests alone and under load."""
    rows, notes = [], []
    for alone, loaded in zip(points[::2], points[1::2], strict=True):
        for one in (alone, loaded):
            ratios = [f"{value:.2f}×" for value in (one.median / alone.median, one.p99 / alone.p99)]
            cells = [f"{1000 * seconds:.1f}" for seconds in (one.median, one.p99)]
            rows.append([one.precision, one.name, str(len(one.latencies)), *cells, *ratios])
        said = report.verdict(loaded.p99 / alone.p99, LATENCY_GOAL, LATENCY_MOST, most=True)
        notes.append(f"{alone.precision}, p99 {loaded.name} over alone: {loaded.p99 / alone.p99:.2f}×, {said}.")
    head = ["precision", "short requests", "number", "p50, ms", "p99, ms", "p50 over alone", "p99 over alone"]
    return report.markdown(head, rows, 2) + "".join(f"\n\n{note}" for note in notes) + "\n"


def tables(points: Sequence[Point]) -> str:
    """Of the parts that were measured."""
    answers = [point for point in points if point.name == "answers"]
    shorts = [point for point in points if point.name != "answers"]
    return "\n".join([*([throughput_table(answers)] if answers else []), *([latency_table(shorts)] if shorts else [])])


def about(chosen: argparse.Namespace) -> Mapping[str, Any]:
    """What the figures depend on."""
    what = {"part": "concurrency", "shape": chosen.shape, "documents": ANSWER.n_docs}
    tokens = {"document_tokens": ANSWER.document_tokens, "new_tokens": ANSWER.new_tokens}
    return {**what, **tokens, **report.environment(chosen.threads)}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = options.parser("concurrency", __doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 16], help="points of throughput (default 1 16)")
    parser.add_argument("--answers", type=int, default=2, help="answers of each client (default 2)")
    parser.add_argument("--shorts", type=int, default=200, help="short requests, at most (default 200)")
    parser.add_argument("--seconds", type=float, default=120.0, help="and for so long at most (default 120)")
    parser.add_argument("--kinds", nargs="+", choices=SHORTS, default=list(SHORTS), help="of short ones (default all)")
    parser.add_argument("--long-tokens", type=int, default=400, help="new tokens of a long answer (default 400)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure each precision with services of its own, print and append."""
    chosen = arguments(argv)
    environment, model = about(chosen), model_directory(SHAPES[chosen.shape])
    points: list[Point] = []
    passes: list[Together] = []
    text = ""
    for precision in chosen.precisions:
        placed = {"threads": chosen.threads, "precision": precision, "flags": ROOM}
        with closing(Ragserve(model, ANSWER, options.logs(), **placed)) as system:
            system.wait_healthy()
            points += asyncio.run(measure(system, precision, chosen))
        if "passes" in chosen.parts:
            torch.set_num_threads(chosen.threads)
            passes += (found := together(model / "generator", precision, ANSWER, (1, COMPARED)))
            text += f"\n{table(found)}"
    text = tables(points) + text
    print(f"\n{text}")
    if not chosen.no_save:
        rows = [asdict(point) for point in [*points, *passes]]
        print(f"appended to {report.append_run(text, rows, environment)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
