"""Section 4.5 of the paper (arXiv 2005.11401) on the running system: `python -m bench.hot_swap`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from bench.hot_swap.corpus import load_questions
from bench.hot_swap.experiment import MODES, ask_all, misses, table
from bench.hot_swap.system import make_world, serving


def main(argv: list[str] | None = None) -> None:
    """Make the knowledge base, start the services, ask, print the table in Markdown and the misses."""
    parser = argparse.ArgumentParser(prog="python -m bench.hot_swap", description=__doc__)
    parser.add_argument("--limit", type=int, default=0, help="questions, the first ones (0: all)")
    parser.add_argument("--mode", choices=sorted(MODES), help="only this marginal (default: both)")
    parser.add_argument("--threads", type=int, default=2, help="threads of the generator (default %(default)s)")
    chosen = parser.parse_args(argv)
    questions = load_questions()[: chosen.limit or None]
    with tempfile.TemporaryDirectory() as temporary:
        world = make_world(Path(temporary))
        with serving(world, Path(temporary) / "logs", threads=chosen.threads) as system:
            asked = ask_all(system, questions, [chosen.mode] if chosen.mode else list(MODES))
    print(table(asked))
    print(f"\nmisses:\n{misses(asked)}")


if __name__ == "__main__":
    main()
