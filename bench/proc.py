"""Memory of a process, as the kernel counts it."""

from __future__ import annotations

from pathlib import Path

KIB = 1024


def memory(name: str, pid: int | str = "self") -> int:
    """Bytes: VmRSS (resident now), RssAnon (of that its own pages, no mapped files) or VmHWM (VmRSS at its highest)."""
    return status_bytes(Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace"), name)


def status_bytes(status: str, name: str) -> int:
    """One figure of a /proc/PID/status.

    Raises:
        KeyError: it is not there; a process that has ended has none.
    """
    for line in status.splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * KIB
    raise KeyError(name)
