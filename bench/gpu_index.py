"""Exact search over 21,000,000 x 768 float16 vectors on one GPU, against the time that reading them once takes.

That is Wikipedia as Lewis et al. indexed it (arXiv 2005.11401, section 2.2): 32.3 GB. Run it with the Python that has
CUDA builds of torch and faiss: `python -m bench.gpu_index`. The floor is the vectors' bytes over the bandwidth that a
copy and a reduction reach in the same run.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from bench.exact_search import GROUP, ExactSearch
from bench.report import cpu_name

BATCHES = (1, 16, 64, 256)
BLOCK_ROWS = 262_144
COPY_BYTES = 4 * 2**30
MOST_FLOOR = 1.5  # the goal at batch 1: this many times the floor
LEAST_RATE = 2000  # the goal at the largest batch, queries per second
PADDED = 16

Search = Callable[[torch.Tensor], torch.Tensor]  # positions [n_queries, k] of queries [n_queries, dim]


@dataclass(frozen=True)
class Figure:
    """The median seconds of one search, and the share of its results that the first way of searching found too."""

    way: str
    batch: int
    seconds: float
    same: float

    @property
    def rate(self) -> float:
        """Queries per second."""
        return self.batch / self.seconds


@dataclass(frozen=True)
class Bench:
    """What is measured, and where."""

    vectors: int
    dim: int
    k: int
    device: str
    repeats: int

    @property
    def bytes(self) -> int:
        """Size of the vectors."""
        return 2 * self.vectors * self.dim

    def blocks(self) -> Iterator[torch.Tensor]:
        """The vectors, [n_rows, dim] in float16, the same each time."""
        for start in range(0, self.vectors, BLOCK_ROWS):
            yield self._random(min(BLOCK_ROWS, self.vectors - start), seed=start)

    def queries(self, batch: int) -> torch.Tensor:
        """Queries [batch, dim] in float16."""
        return self._random(batch, seed=2**40 + batch)

    def _random(self, n: int, seed: int) -> torch.Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        return torch.randn(n, self.dim, generator=generator, device=self.device).half()

    def seconds(self, call: Callable[[], object]) -> float:
        """Median time of a call; the first two only warm up."""
        taken = []
        for _ in range(self.repeats + 2):
            self._wait()
            begin = time.perf_counter()
            call()
            self._wait()
            taken.append(time.perf_counter() - begin)
        return statistics.median(taken[2:])

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()


def bandwidth(bench: Bench, vectors: torch.Tensor) -> float:
    """Bytes per second: the better of a copy, which reads and writes, and a reduction, which only reads."""
    n_bytes = min(COPY_BYTES, bench.bytes)
    source = vectors.view(-1)[: n_bytes // 2].view(torch.int32)
    target = torch.empty_like(source)
    copied = 2 * n_bytes / bench.seconds(lambda: target.copy_(source))
    reduced = n_bytes / bench.seconds(lambda: source.view(torch.float32).amax())
    return max(copied, reduced)


def gather(bench: Bench) -> tuple[torch.Tensor, float]:
    """All vectors on the device, and the length of the longest."""
    vectors = torch.empty(bench.vectors, bench.dim, dtype=torch.float16, device=bench.device)
    longest, start = 0.0, 0
    for block in bench.blocks():
        vectors[start : start + len(block)] = block
        longest = max(longest, float(block.float().norm(dim=1).max()))
        start += len(block)
    return vectors, longest


def faiss_index(bench: Bench) -> Any:
    """FAISS's Flat index with float16 vectors, on the device. Raises RuntimeError when it does not fit."""
    faiss: Any = importlib.import_module("faiss")
    if bench.device == "cpu":
        index = faiss.index_factory(bench.dim, "SQfp16", faiss.METRIC_INNER_PRODUCT)
        for block in bench.blocks():
            index.add(block.float().numpy())
        return index
    importlib.import_module("faiss.contrib.torch_utils")  # lets the index take torch's tensors where they are
    config = faiss.GpuIndexFlatConfig()
    config.useFloat16 = True
    resources = faiss.StandardGpuResources()
    index = faiss.GpuIndexFlat(resources, bench.dim, faiss.METRIC_INNER_PRODUCT, config)
    index.referenced_objects = [resources]
    for block in bench.blocks():
        index.add(block.float())
    return index


def faiss_search(bench: Bench, index: Any) -> Search:
    """FAISS's search, which takes float32."""
    if bench.device == "cpu":
        return lambda queries: torch.from_numpy(index.search(queries.float().numpy(), bench.k)[1])
    return lambda queries: index.search(queries.float(), bench.k)[1]


def measure(bench: Bench, way: str, search: Search, batch: int, expected: dict[int, torch.Tensor]) -> Figure:
    """Time one way at one batch; the first way's results become what is expected."""
    queries = bench.queries(batch)
    found = search(queries).cpu()
    wanted = expected.setdefault(batch, found)
    same = torch.tensor([torch.isin(a, b).float().mean() for a, b in zip(found, wanted, strict=True)]).mean()
    return Figure(way, batch, bench.seconds(lambda: search(queries)), float(same))


def run(bench: Bench, batches: Sequence[int]) -> tuple[list[Figure], float]:
    """All figures, and the floor in seconds. The vectors are held once at a time."""
    vectors, longest = gather(bench)
    floor = bench.bytes / bandwidth(bench, vectors)
    figures, expected = [], {}
    for batch in batches:
        for padded in (1, PADDED) if batch < PADDED else (1,):
            exact = ExactSearch(vectors, longest, padded)
            way = "torch" if padded == 1 else f"torch, filled up to {padded}"
            figures.append(measure(bench, way, lambda queries, s=exact: s.search(queries, bench.k)[1], batch, expected))
    del vectors, exact
    if bench.device == "cuda":
        torch.cuda.empty_cache()
    try:
        search = faiss_search(bench, faiss_index(bench))
        figures += [measure(bench, "FAISS", search, batch, expected) for batch in batches]
    except (RuntimeError, ImportError, AttributeError) as error:  # AttributeError: a build without GPUs
        print(f"FAISS: not measured: {str(error).splitlines()[0]}")
    return figures, floor


def table(figures: Sequence[Figure], floor: float) -> str:
    """The figures in Markdown."""
    head = ["search", "batch", "time, ms", "times the floor", "queries/s", "same results"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |'}{' ---: |' * 5}"]
    for one in figures:
        times = f"{one.seconds * 1e3:.2f} | {one.seconds / floor:.2f} | {one.rate:,.0f}"
        lines.append(f"| {one.way} | {one.batch} | {times} | {one.same:.2%} |")
    return "\n".join(lines)


def goals(figures: Sequence[Figure], floor: float) -> str:
    """Whether the best way meets the goals."""
    smallest, largest = (choose(one.batch for one in figures) for choose in (min, max))
    slowest = min(one.seconds for one in figures if one.batch == smallest) / floor
    rate = max(one.rate for one in figures if one.batch == largest)
    met = {True: "met", False: "not met"}
    return (
        f"Goal at batch {smallest}, at most {MOST_FLOOR} times the floor: {slowest:.2f}, {met[slowest <= MOST_FLOOR]}. "
        f"Goal at batch {largest}, at least {LEAST_RATE:,} queries/s: {rate:,.0f}, {met[rate >= LEAST_RATE]}."
    )


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_index", description=__doc__)
    parser.add_argument("--vectors", type=int, default=21_000_000, help="how many (default 21,000,000)")
    parser.add_argument("--dim", type=int, default=768, help="their width (default 768)")
    parser.add_argument("--k", type=int, default=50, help="results of a query (default 50)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu is for trying it out, on few")
    parser.add_argument("--repeats", type=int, default=10, help="measured repeats of every search (default 10)")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    chosen = arguments(argv)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        print(
            "bench.gpu_index: torch sees no CUDA device here, nothing measured; --device cpu --vectors 20000 tries it"
        )
        return 0
    vectors = max(chosen.vectors // GROUP, 1) * GROUP
    bench = Bench(vectors, chosen.dim, chosen.k, chosen.device, chosen.repeats)
    name = torch.cuda.get_device_name() if chosen.device == "cuda" else cpu_name()
    with torch.inference_mode():
        figures, floor = run(bench, BATCHES)
    print(f"## Exact search, {vectors:,} x {bench.dim} float16 ({bench.bytes / 1e9:.2f} GB), K = {bench.k}, {name}\n")
    print(f"Floor: {floor * 1e3:.2f} ms, at {bench.bytes / floor / 1e9:,.0f} GB/s measured in this run.\n")
    print(table(figures, floor))
    if chosen.device == "cuda":
        print("\n" + goals(figures, floor))
    return 0


if __name__ == "__main__":
    sys.exit(main())
