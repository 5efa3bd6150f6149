"""The figures of the scale benchmark in one JSON file, so that a run can be split, resumed and drawn later."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.report import RESULTS

FILE = RESULTS / "scale.json"
KINDS = ("Flat", "HNSW32", "IVF-PQ")


def factory(kind: str, size: int) -> tuple[str, str]:
    """FAISS's factory string and search parameters of a kind of index at a size.

    IVF: 4 sqrt(n) cells, FAISS's advice for up to a million vectors, of which a search visits one in 32, but 16 at
    least. PQ96: 8 dimensions of 768 in each byte. Its "np" leaves out the training of polysemous codes, which no search
    here uses: some four seconds of one core for each of the 96 parts, whatever the size.
    """
    if kind == "Flat":
        return "Flat", ""
    if kind == "HNSW32":
        return "HNSW32", "efSearch=256"
    if kind == "IVF-PQ":
        cells = 4 * math.isqrt(size)
        return f"IVF{cells},PQ96np", f"nprobe={max(16, cells // 32)}"
    raise ValueError(f"no kind of index {kind!r}: choose from {', '.join(KINDS)}")


@dataclass
class Results:
    """What the file holds: `machine`, the figures of the machine, and `cells`, one for each kind and size."""

    path: Path
    machine: dict[str, Any]
    cells: list[dict[str, Any]]

    @classmethod
    def read(cls, path: Path = FILE) -> Results:
        """What is there; nothing when there is no file yet."""
        if not path.is_file():
            return cls(path, {}, [])
        stored = json.loads(path.read_text(encoding="utf-8"))
        return cls(path, stored["machine"], stored["cells"])

    def cell(self, kind: str, size: int) -> dict[str, Any] | None:
        """The figures of one kind and size, if measured."""
        return next((cell for cell in self.cells if (cell["kind"], cell["size"]) == (kind, size)), None)

    def of(self, kind: str) -> list[dict[str, Any]]:
        """All sizes of a kind, smallest first."""
        return sorted((cell for cell in self.cells if cell["kind"] == kind), key=lambda cell: int(cell["size"]))

    def put(self, cell: Mapping[str, Any]) -> None:
        """Add or replace the figures of one kind and size, and write the file."""
        self.cells = [old for old in self.cells if (old["kind"], old["size"]) != (cell["kind"], cell["size"])]
        self.cells.append(dict(cell))
        self.save()

    def save(self) -> None:
        """Write the file: whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        text = json.dumps({"machine": self.machine, "cells": self.cells}, indent=1)
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(self.path)

    def slope(self, kind: str, figure: Callable[[Mapping[str, Any]], float]) -> float | None:
        """The exponent p of a figure growing as size ** p between the smallest and the largest size measured."""
        cells = self.of(kind)
        if len(cells) < 2:
            return None
        first, last = cells[0], cells[-1]
        return math.log(figure(last) / figure(first)) / math.log(last["size"] / first["size"])

    def extrapolated(self, kind: str, figure: Callable[[Mapping[str, Any]], float], size: int) -> float | None:
        """A figure at another size, from the largest two measured: a straight line on log-log paper."""
        cells = self.of(kind)[-2:]
        if len(cells) < 2:
            return None
        first, last = cells
        slope = math.log(figure(last) / figure(first)) / math.log(last["size"] / first["size"])
        return float(figure(last) * (size / last["size"]) ** slope)
