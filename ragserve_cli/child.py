"""Runs a service that ends with its parent: `python -m ragserve_cli.child PARENT_PID MODULE ARGUMENTS...`."""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """SIGTERM for this process when the parent is killed, so that nothing is orphaned; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            sys.exit("the parent ended while this service started")


if __name__ == "__main__":
    end_with_parent(int(sys.argv[1]))
    module = sys.argv[2]
    del sys.argv[1:3]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
