"""What the command lines of the generator's benchmarks have in common."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench import CACHE
from bench.workload import SHAPES
from generator_svc.models.numerics import NUMERICS


def parser(
    part: str, description: str | None, precisions: Sequence[str] = ("float32", "int8")
) -> argparse.ArgumentParser:
    """Of `python -m bench.PART`: the model's size and precisions, threads, and whether figures are kept."""
    raw = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(prog=f"python -m bench.{part}", description=description, formatter_class=raw)
    made.add_argument("--shape", choices=sorted(SHAPES), default="bart-large", help="size of the random BART")
    made.add_argument("--threads", type=int, default=2, help="threads of whichever side computes (default 2)")
    made.add_argument(
        "--precisions",
        nargs="+",
        choices=sorted(NUMERICS),
        default=list(precisions),
        help=f"of our side (default {' '.join(precisions)})",
    )
    made.add_argument("--no-save", action="store_true", help="print only; nothing is written")
    return made


def logs() -> Path:
    """Where the services of a benchmark log."""
    return CACHE.resolve() / "logs"
