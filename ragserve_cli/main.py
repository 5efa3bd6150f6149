"""The program `ragserve`."""

from __future__ import annotations

import sys

from ragserve_cli import interrupts


def main() -> None:
    """Entry point: handles Ctrl-C before the commands, which take a while to import, are loaded."""
    interrupts.end_at_ctrl_c()
    from ragserve_cli.commands import run  # noqa: PLC0415  (slow to import)

    sys.exit(run())
