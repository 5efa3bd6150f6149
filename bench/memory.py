"""Memory of the generator's process: loaded, with sessions open, and after many of them: `python -m bench.memory`.

- Sessions: the process by itself after loading, then with 1, 4 and 16 sessions open that have each generated 20 tokens
  from 5 documents of 160, beside what the scheduler counts for them (`ragserve_cache_bytes`).
- Leftovers: 20,000 tiny sessions (1 document of 40 tokens, 2 new tokens, 8 at a time), by default on the small model.
  The last 10,000 must leave nothing: what the allocator keeps levels off before (6 MB in the first 15,000). There are
  1,000 different documents, or with `--distinct` as many as sessions: the tokenizer keeps up to 10,000 words that it
  has seen, 1 KB for each of these.

Figures are the kernel's: VmRSS, resident at that moment, and VmHWM, resident at most since the start. MB are 10^6
bytes.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import grpc

from bench import options, report
from bench.proc import memory
from bench.processes import ServiceProcess, running, start
from bench.streams import Stream
from bench.workload import SHAPES, Workload, model_directory
from ragserve.v1 import generator_pb2, generator_pb2_grpc
from training.progress import stage

STANDARD, TINY = Workload(), Workload(n_docs=1, document_tokens=40, new_tokens=2)
OPEN = (1, 4, 16)
IN_FLIGHT = 8
JUDGED, BLOCK, DOCUMENTS = 10_000, 1_000, 1_000  # the last sessions that must leave nothing; between two figures
MB = 1e6
# The goal: at its highest, BART-large in int8, by the number of sessions.
GOAL_PRECISION, GOAL_SHAPE, GOAL_MB, GOAL_MB_PER_SESSION = "int8", "bart-large", 1200.0, 60.0
MOST_LEFT_MB = 4.0  # of JUDGED sessions; the allocator's own noise
FLAGS = {"device": "cpu", "idle_seconds": 3600, "cache_bytes": 16 * 2**30}
PARTS = ("sessions", "leftovers")


@dataclass(frozen=True)
class Held:
    """Bytes of the process with some sessions open; `counted` is the scheduler's figure for all of them."""

    precision: str
    sessions: int
    resident: int
    highest: int
    counted: float


@dataclass(frozen=True)
class Left:
    """Bytes resident after so many sessions, none of them open."""

    precision: str
    after: int
    resident: int


@contextmanager
def generator(shape: str, precision: str, threads: int) -> Iterator[ServiceProcess]:
    """A generator that has nothing done yet, stopped at the end."""
    flags = {"model": model_directory(SHAPES[shape]), "precision": precision, **FLAGS}
    process = start("generator_svc", flags, options.logs(), threads=threads)
    with running(process):
        yield process


@contextmanager
def connected(process: ServiceProcess) -> Iterator[tuple[generator_pb2_grpc.GeneratorServiceStub, int]]:
    """A stub, and the model's end token."""
    with grpc.insecure_channel(process.target) as channel:
        stub = generator_pb2_grpc.GeneratorServiceStub(channel)
        info = stub.GetInfo(generator_pb2.GeneratorServiceGetInfoRequest(), wait_for_ready=True, timeout=60)
        yield stub, info.eos_token_ids[0]


def look(process: ServiceProcess, precision: str, sessions: int) -> Held:
    """The figures at this moment.

    Raises:
        RuntimeError: another number of sessions is open.
    """
    there = process.metric("ragserve_decode_sessions")
    if there != sessions:
        raise RuntimeError(f"{there:g} sessions are open where {sessions} were meant")
    pid, counted = process.process.pid, process.metric("ragserve_cache_bytes")
    return Held(precision, sessions, memory("VmRSS", pid), memory("VmHWM", pid), counted)


def hold(precision: str, chosen: argparse.Namespace) -> list[Held]:
    """Open more and more sessions."""
    with generator(chosen.shape, precision, chosen.threads) as process, connected(process) as (stub, eos):
        found, streams = [look(process, precision, 0)], list[Stream]()
        with stage(f"{precision}, {OPEN[-1]} sessions") as bar:
            for number in range(1, OPEN[-1] + 1):
                streams.append(Stream(stub, replace(STANDARD, seed=number), eos))
                streams[-1].decode()
                bar.update(number, OPEN[-1], "open")
                if number in OPEN:
                    found.append(look(process, precision, number))
        for stream in streams:
            stream.close()
        return found


def leave(precision: str, chosen: argparse.Namespace) -> list[Left]:
    """Open and end many sessions."""
    seeds, found = itertools.count(), list[Left]()
    with generator(chosen.leak_shape, precision, chosen.threads) as process, connected(process) as (stub, eos):

        def one(_: int) -> None:
            seed = next(seeds) % (chosen.sessions if chosen.distinct else DOCUMENTS)
            stream = Stream(stub, replace(TINY, seed=seed), eos)
            stream.decode()
            stream.close()

        with stage(f"{precision}, {chosen.sessions} sessions") as bar, ThreadPoolExecutor(IN_FLIGHT) as pool:
            for done in range(BLOCK, chosen.sessions + 1, BLOCK):
                list(pool.map(one, range(BLOCK)))
                found.append(Left(precision, done, memory("VmRSS", process.process.pid)))
                bar.update(done, chosen.sessions, f"{found[-1].resident / MB:.1f} MB resident")
    return found


def held_table(held: Sequence[Held], shape: str) -> str:
    """By the number of open sessions; each session's bytes are measured against the process without any."""
    rows, loaded = [], {one.precision: one for one in held if one.sessions == 0}
    for one in held:
        more = one.resident - loaded[one.precision].resident
        each = [f"{value / one.sessions / MB:.1f}" for value in (more, one.counted)] if one.sessions else ["", ""]
        most = [f"{value / MB:.0f}" for value in (one.resident, one.highest)]
        goal = GOAL_MB + GOAL_MB_PER_SESSION * one.sessions
        judged = (one.precision, shape) == (GOAL_PRECISION, GOAL_SHAPE)
        said = report.verdict(one.highest / MB, goal, most=True) if judged else ""
        rows.append([one.precision, said, str(one.sessions), *most, *each])
    head = ["precision", "VmHWM", "sessions", "VmRSS, MB", "VmHWM, MB", "a session, MB", "as counted, MB"]
    return report.markdown(head, rows, 2) + "\n"


def left_table(left: Sequence[Left]) -> str:
    """Resident after each thousand, and whether that grows."""
    rows = [[one.precision, f"{one.after:,}", f"{one.resident / MB:.1f}"] for one in left]
    text = report.markdown(["precision", "sessions ended", "VmRSS, MB"], rows)
    for precision in dict.fromkeys(one.precision for one in left):
        own = [one for one in left if one.precision == precision]
        before, last = own[-1 - JUDGED // BLOCK], own[-1]
        more = (last.resident - before.resident) / MB
        said = report.verdict(more, MOST_LEFT_MB, most=True)
        text += f"\n\n{precision}, {last.after:,} sessions over {before.after:,}: {more:+.1f} MB, {said}."
    return text + "\n"


def about(chosen: argparse.Namespace) -> Mapping[str, Any]:
    """What the figures depend on."""
    what = {"part": "memory", "shape": chosen.shape, "leak_shape": chosen.leak_shape, "distinct": chosen.distinct}
    tokens = {
        "documents": STANDARD.n_docs,
        "document_tokens": STANDARD.document_tokens,
        "new_tokens": STANDARD.new_tokens,
    }
    return {**what, **tokens, **report.environment(chosen.threads)}


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = options.parser("memory", __doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="default: both")
    parser.add_argument("--leak-shape", choices=sorted(SHAPES), default="small", help="of the leftovers' model")
    parser.add_argument("--sessions", type=int, default=20_000, help="of the leftovers (default 20000)")
    parser.add_argument("--distinct", action="store_true", help="leftovers: other documents in every session")
    chosen = parser.parse_args(argv)
    if chosen.sessions < JUDGED + BLOCK:
        parser.error(f"--sessions must be {JUDGED + BLOCK} or more")
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Measure each precision in processes of its own, print and append."""
    chosen = arguments(argv)
    environment = about(chosen)
    held = [one for name in chosen.precisions for one in hold(name, chosen)] if "sessions" in chosen.parts else []
    left = [one for name in chosen.precisions for one in leave(name, chosen)] if "leftovers" in chosen.parts else []
    text = "\n".join([*([held_table(held, chosen.shape)] if held else []), *([left_table(left)] if left else [])])
    print(f"\n{text}")
    if not chosen.no_save:
        raw = [asdict(one) for one in (*held, *left)]
        print(f"appended to {report.append_run(text, raw, environment)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
