"""Section 4.5 of the paper (arXiv 2005.11401) on the running system: `python -m bench.hot_swap`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bench.hot_swap.corpus import VERSIONS, load_questions, passages_file
from bench.hot_swap.experiment import MODES, Asked, ask_all, misses, table
from bench.hot_swap.system import serving


def main(argv: list[str] | None = None) -> None:
    """Serve the demo, write both versions, ask both, print the table in Markdown and the misses."""
    parser = argparse.ArgumentParser(prog="python -m bench.hot_swap", description=__doc__)
    parser.add_argument("--limit", type=int, default=0, help="questions, the first ones (0: all)")
    parser.add_argument("--mode", choices=sorted(MODES), help="only this marginal (default: both)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the generator (default %(default)s)")
    chosen = parser.parse_args(argv)
    questions = load_questions()[: chosen.limit or None]
    with tempfile.TemporaryDirectory() as temporary, serving(Path(temporary), threads=chosen.threads) as system:
        numbers = {version: system.publish(passages_file(version)) for version in VERSIONS}
        asked: list[Asked] = []
        for mode in [chosen.mode] if chosen.mode else MODES:
            asked += ask_all(system, numbers, questions, mode)
            print(f"{table(asked)}\n", flush=True)
    print(f"misses:\n{misses(asked)}")


if __name__ == "__main__":
    main()
