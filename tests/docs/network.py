"""A network of its own for the commands of a page, so that the default ports are free whatever else runs here."""

from __future__ import annotations

import os
import shutil
import subprocess
from types import TracebackType

# Brings the loopback device up, says so, and stays until its standard input closes.
HOLDER = "ip link set lo up && echo up && exec cat"


class OwnNetwork:
    """A network namespace. Where none can be made, commands run in the network of this process."""

    def __init__(self) -> None:
        self._holder: subprocess.Popen[str] | None = None
        self.prefix: tuple[str, ...] = ()  # before each command

    def __enter__(self) -> OwnNetwork:
        if not all(shutil.which(name) for name in ("unshare", "nsenter", "ip")):
            return self
        user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
        self._holder = subprocess.Popen(
            ["unshare", *user, "--net", "sh", "-c", HOLDER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._holder.stdout is not None
        if self._holder.stdout.readline().strip() == "up":
            entered = () if os.geteuid() == 0 else ("--user", "--preserve-credentials")
            self.prefix = ("nsenter", "--target", str(self._holder.pid), *entered, "--net", "--")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._holder is not None:
            self._holder.communicate("", timeout=30)
