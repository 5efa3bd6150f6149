"""Measure this system and its peers: the generator, then the retriever, each in a process of its own.

Other parts run when `--only` names them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence

PARTS = ("generator", "retrieval")
# Longer ones, or without a peer.
ALONE = (
    *("scale", "no_stall", "hot_swap", "lexical", "encoder", "gpu_index", "gpu_generator"),
    *("decode_step", "precision", "drafting", "concurrency", "growth", "operating_points", "memory", "wire"),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts that are asked for; what the line says beyond `--only` goes to each. The first bad exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__, add_help=False)
    parser.add_argument(
        "--only", choices=PARTS + ALONE, help="one part (default: the first two); its own options may follow"
    )
    parser.add_argument("-h", "--help", action="store_true", help="this text; with --only, that part's")
    chosen, rest = parser.parse_known_args(argv)
    if chosen.help and not chosen.only:
        parser.print_help()
        print("\ngenerator and retrieval take --quick, --device and --no-save.")
        return 0
    rest += ["--help"] if chosen.help else []
    for part in PARTS if chosen.only is None else (chosen.only,):
        status = subprocess.run([sys.executable, "-m", f"bench.{part}", *rest], check=False).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
