"""Where the figures go: a table on the screen, and the same appended to `bench/results/`."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
PACKAGES = ("ragserve", "torch", "transformers", "grpcio", "numpy", "tokenizers")
PROVIDERS = ("ragserve", "transformers", "transformers padded")


@dataclass(frozen=True)
class CaseResult:
    """Seconds of every repeat, by who answered; stages of the last of our own, and its widenings where counted."""

    case: str
    seconds: Mapping[str, Sequence[float]]
    same_tokens: bool
    stages_seconds: Mapping[str, float]
    widenings_per_step: float | None = None

    def median(self, provider: str) -> float | None:
        """Median seconds, or None when it was not measured."""
        values = self.seconds.get(provider)
        return statistics.median(values) if values else None


def cpu_name() -> str:
    """The processor's own name."""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def installed(packages: Sequence[str]) -> list[str]:
    """Those of these packages that are installed: FAISS and ONNX Runtime have other names where they use a GPU."""
    names = {distribution.name for distribution in importlib.metadata.distributions()}
    return [name for name in packages if name in names]


def commit() -> str:
    """The commit at hand, where git is."""
    try:
        found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return found.stdout.strip() or "unknown"


def environment(threads: int, packages: Sequence[str] = PACKAGES) -> dict[str, Any]:
    """Machine, versions and thread counts of a run."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_before": round(os.getloadavg()[0], 2),
        "threads": threads,
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def _cell(value: float | None, unit: str = "") -> str:
    return "" if value is None else f"{value:.2f}{unit}"


def _row(result: CaseResult) -> str:
    ours = result.median("ragserve")
    peers = [result.median(provider) for provider in PROVIDERS[1:]]
    ratios = [peer / ours if peer is not None and ours else None for peer in peers]
    pairs = [cell for peer, ratio in zip(peers, ratios, strict=True) for cell in (_cell(peer), _cell(ratio, "×"))]
    return f"| {' | '.join([result.case, _cell(ours), *pairs, 'yes' if result.same_tokens else 'no'])} |"


def table(results: Sequence[CaseResult]) -> str:
    """Medians in seconds, and how many times longer the peer takes."""
    head = ["case", "ragserve, s", "transformers, s", "ratio", "padded to 300, s", "ratio", "same tokens"]
    rule = ["---", *["---:"] * (len(head) - 2), "---"]
    lines = [f"| {' | '.join(head)} |", f"| {' | '.join(rule)} |", *(_row(result) for result in results)]
    return "\n".join(lines) + "\n"


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], text_columns: int = 1) -> str:
    """A table whose first columns are text and whose others are numbers."""
    rule = ["---"] * text_columns + ["---:"] * (len(head) - text_columns)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def verdict(value: float, goal: float, least: float | None = None, *, most: bool = False) -> str:
    """Whether a figure reaches its goal, and what is required at least; with `most` both are upper bounds."""
    sign, met = ("≤", value <= goal) if most else ("≥", value >= goal)
    said = f"goal {sign} {goal:g}{'' if met else ' NOT'} met"
    if met or least is None:
        return said
    enough = value <= least if most else value >= least
    return f"{said}, required {sign} {least:g}{'' if enough else ' NOT'} met"


def append_run(text: str, results: Sequence[Any], about: Mapping[str, Any]) -> Path:
    """Add tables and the raw figures behind them to the files of this day and processor; the Markdown file's path."""
    RESULTS.mkdir(exist_ok=True)
    name = re.sub(r"[^a-z0-9]+", "-", str(about["cpu"]).lower()).strip("-")
    markdown = RESULTS / f"{str(about['date'])[:10]}-{name}.md"
    facts = ", ".join(f"{key} {value}" for key, value in about.items())
    with markdown.open("a", encoding="utf-8") as file:
        file.write(f"## {about['date']}\n\n{facts}\n\n{text}\n")
    data = markdown.with_suffix(".json")
    runs = json.loads(data.read_text(encoding="utf-8")) if data.is_file() else []
    runs.append({**about, "results": results})
    data.write_text(json.dumps(runs, indent=1) + "\n", encoding="utf-8")
    return markdown
