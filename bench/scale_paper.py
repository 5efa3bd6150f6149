"""What 21 million vectors of 768 need, calculated from the formats and from what was measured at smaller sizes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.scale_results import Results

SIZE, DIMENSION = 21_015_324, 768  # psgs_w100 of DPR (Karpukhin et al., arXiv 2004.04906), as in arXiv 2005.11401
HNSW_LINKS = 32
PQ_BYTES = 96
ROW_KEY_BYTES = 8 + 8  # retriever_svc.rows: a row id and a stamp, int64 each
TEXT_BYTES = 620  # psgs_w100.tsv: 13 GB of titles and texts
STORED_TEXT_SHARE = 0.57  # Lance's files of demo/kb: 340 bytes of ids, titles, texts and metadata for 595
SERVER_BANDWIDTH = 307e9  # bytes/s: eight channels of DDR5-4800
GB = 1e9
SHORTEST = 1e-4  # seconds that are told apart from nothing


@dataclass(frozen=True)
class Gpu:
    """Memory in bytes and its bandwidth in bytes a second, as in the data sheet."""

    name: str
    memory: float
    bandwidth: float

    def needed(self, size: float) -> int:
        """How many hold this many bytes, with a tenth of the memory left for FAISS's scratch space and CUDA."""
        return math.ceil(size / (0.9 * self.memory))


GPUS = (Gpu("A100 40 GB", 40e9, 1.555e12), Gpu("H100 80 GB", 80e9, 3.35e12), Gpu("H200 141 GB", 141e9, 4.8e12))


def cells(size: int) -> int:
    """Cells of an IVF index."""
    return 4 * math.isqrt(size)


@dataclass(frozen=True)
class Layout:
    """How one kind of index holds a vector."""

    name: str
    kind: str  # the kind measured whose growth is used; empty: none
    formula: str
    bytes_per_vector: float
    scanned_share: float  # of the bytes, read by one query; 0: not what decides
    on_gpu: bool


def links() -> float:
    """Bytes of HNSW's graph for each vector: the lowest level, the levels above, and where each list begins."""
    return 4 * 2 * HNSW_LINKS + 4 * HNSW_LINKS / (HNSW_LINKS - 1) + 8 + 4


def layouts(size: int = SIZE, dimension: int = DIMENSION) -> list[Layout]:
    """The kinds compared."""
    tables = (4 * dimension * cells(size) + 4 * 256 * dimension) / size
    graph = "4·2M + 4·M/(M−1) + 12, M = 32"
    return [
        Layout("Flat, float32, and codes", "Flat", "4d + d", 5 * dimension, 1 / 5, on_gpu=False),
        Layout("Flat, float32", "", "4d", 4 * dimension, 1, on_gpu=True),
        Layout("Flat, float16", "", "2d", 2 * dimension, 1, on_gpu=True),
        Layout("HNSW32, float32", "HNSW32", f"4d + {graph}", 4 * dimension + links(), 0, on_gpu=False),
        Layout("HNSW32, float16", "", f"2d + {graph}", 2 * dimension + links(), 0, on_gpu=False),
        Layout("IVF-PQ96", "IVF-PQ", "96 + 8 + (4d·cells + 4·256·d)/n", PQ_BYTES + 8 + tables, 1 / 32, on_gpu=True),
    ]


def build_seconds(cell: Mapping[str, Any]) -> float:
    """A figure that grows."""
    return float(cell["build_seconds"])


def p50_seconds(cell: Mapping[str, Any]) -> float:
    """A figure that grows."""
    return float(cell["p50_seconds"])


def duration(seconds: float | None) -> str:
    """For a person; an em dash where nothing is known."""
    if seconds is None:
        return "—"
    for unit, length in (("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{1000 * seconds:.1f} ms" if seconds >= SHORTEST else "< 0.1 ms"


def memory_rows(results: Results) -> list[list[str]]:
    """Bytes, RAM, and times on a CPU: one line for each layout."""
    core = results.machine.get("read_bytes_per_second")
    rows = []
    for layout in layouts():
        total = layout.bytes_per_vector * SIZE
        read = total * layout.scanned_share
        by_memory = [read / bandwidth if read and bandwidth else None for bandwidth in (core, SERVER_BANDWIDTH)]
        rows.append(
            [
                layout.name,
                f"`{layout.formula}`",
                f"{layout.bytes_per_vector:.0f}",
                f"{total / GB:.1f}",
                *map(duration, by_memory),
                duration(results.extrapolated(layout.kind, p50_seconds, SIZE)),
                duration(results.extrapolated(layout.kind, build_seconds, SIZE)),
            ]
        )
    return rows


def gpu_rows() -> list[list[str]]:
    """Cards, and milliseconds for one query at the memory's bandwidth: one line for each layout a GPU can search."""
    rows = []
    for layout in layouts():
        total = layout.bytes_per_vector * SIZE
        cells_ = [layout.name, f"{total / GB:.1f}"]
        for gpu in GPUS:
            cards = gpu.needed(total)
            read = total * layout.scanned_share / (cards * gpu.bandwidth)
            cells_.append(f"{cards} ({duration(read)})" if layout.on_gpu else "not on GPUs")
        rows.append(cells_)
    return rows


def disk_rows() -> list[list[str]]:
    """What is beside the index: on disk and in memory."""
    keys = ROW_KEY_BYTES * SIZE / GB
    rows = [["row ids and stamps", f"{ROW_KEY_BYTES}", "memory", f"{keys:.2f}"]]
    for name, width in (("float16", 2), ("float32", 4)):
        stored = width * DIMENSION + TEXT_BYTES * STORED_TEXT_SHARE
        rows.append([f"Lance dataset, {name} vectors", f"{stored:.0f}", "disk", f"{stored * SIZE / GB:.1f}"])
    held = 2 * DIMENSION + TEXT_BYTES
    rows.append(["passages held in memory, float16 vectors", f"{held:.0f}", "memory", f"{held * SIZE / GB:.1f}"])
    return rows
