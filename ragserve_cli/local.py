"""Runs services as child processes: starts them, watches their health, forwards their logs, drains them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ragserve.boundary import BAD_INPUT
from ragserve.errors import InvalidInputError, UnavailableError
from ragserve_cli.plan import Launch

POLL_SECONDS = 0.1
STOP_SECONDS = 30.0  # after SIGTERM, longer than the services' own grace; then SIGKILL
TAIL_LINES = 12

LogLine = Callable[[str, str], None]  # name of the service, line


def reason_of(line: str) -> str | None:
    """Why a service says in its log that it cannot start; None for any other line."""
    found = re.search(r' msg="cannot start" .*?reason=("(?:[^"\\]|\\.)*"|\S+)', line)
    if found is None:
        return None
    return str(json.loads(found[1])) if found[1].startswith('"') else found[1]


class Child:
    """One service process. Its output goes line by line to `log`; the last lines are kept."""

    def __init__(self, launch: Launch, log: LogLine) -> None:
        self.launch = launch
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)
        self._log = log
        command = [sys.executable, "-m", "ragserve_cli.child", str(os.getpid()), launch.module, *launch.arguments]
        self.process = subprocess.Popen(  # noqa: S603
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C reaches us only; we tell the services in order
        )
        self._reader = threading.Thread(target=self._read, name=f"{launch.name}-log", daemon=True)
        self._reader.start()

    def healthy(self) -> bool:
        """Whether the service answers that it is SERVING."""
        with grpc.insecure_channel(self.launch.target, options=[("grpc.enable_http_proxy", 0)]) as channel:
            try:
                reply = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1.0)
            except grpc.RpcError:
                return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    def check_alive(self) -> None:
        """Raises UnavailableError with the last lines when the process has ended (InvalidInputError: bad settings)."""
        status = self.process.poll()
        if status is None:
            return
        self._reader.join(timeout=2.0)
        last = self.tail[-1] if self.tail else ""
        if status == BAD_INPUT and last.startswith("error: "):
            raise InvalidInputError(self.launch.name, last.removeprefix("error: "))
        if (reason := reason_of(last)) is not None:
            raise UnavailableError(f"the {self.launch.name} cannot start: {reason}")
        lines = "".join(f"\n  {line}" for line in self.tail)
        raise UnavailableError(f"the {self.launch.name} ended with status {status}; its last lines:{lines}")

    def ask_to_stop(self) -> None:
        """SIGTERM, which makes the service drain and end."""
        if self.process.poll() is None:
            self.process.terminate()

    def wait(self, seconds: float) -> None:
        """Wait for the end of the process, and kill it after `seconds`."""
        try:
            self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._reader.join(timeout=2.0)
        if self.process.stdout is not None:
            self.process.stdout.close()

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self.tail.append(line.rstrip("\n"))
            self._log(self.launch.name, line.rstrip("\n"))


class LocalServices:
    """The services of a plan; a context manager that stops whatever it started."""

    def __init__(self, launches: Sequence[Launch], log: LogLine) -> None:
        self._launches = launches
        self._log = log
        self._children: list[Child] = []

    def __enter__(self) -> LocalServices:
        try:
            for launch in self._launches:
                self._children.append(Child(launch, self._log))
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait_ready(self, stop: threading.Event, ready: Callable[[str], None], timeout: float) -> bool:
        """Wait until all are healthy, calling `ready` with the name of each; False when `stop` was set meanwhile.

        Raises:
            UnavailableError: a service ended, or is not healthy after `timeout` seconds.
            InvalidInputError: a service refused its settings.
        """
        deadline = time.monotonic() + timeout
        waiting = list(self._children)
        while waiting:
            self.check_alive()
            for child in [child for child in waiting if child.healthy()]:
                waiting.remove(child)
                ready(child.launch.name)
            if waiting and time.monotonic() > deadline:
                names = " and ".join(child.launch.name for child in waiting)
                raise UnavailableError(f"{names} not healthy after {timeout:g} s; --startup-timeout allows more")
            if waiting and stop.wait(POLL_SECONDS):
                return False
        return True

    def check_alive(self) -> None:
        """Raises UnavailableError when one of the processes has ended."""
        for child in self._children:
            child.check_alive()

    def watch(self, stop: threading.Event) -> None:
        """Return when `stop` is set. Raises UnavailableError when one of the processes ends before."""
        while not stop.wait(POLL_SECONDS):
            self.check_alive()

    def stop(self) -> None:
        """Drain the last one first, which the others serve, so that requests under way can finish; then the rest."""
        for group in (self._children[-1:], self._children[:-1]):
            for child in group:
                child.ask_to_stop()
            for child in group:
                child.wait(STOP_SECONDS)
        self._children.clear()

    def kill(self) -> None:
        """End the processes at once."""
        for child in self._children:
            child.process.kill()


class Stop(threading.Event):
    """An event that SIGINT or SIGTERM sets. Where `cancellable` is true, SIGINT raises KeyboardInterrupt instead."""

    cancellable = False


def stop_on_signals(services: Callable[[], LocalServices | None]) -> Stop:
    """An event set by the first SIGINT or SIGTERM; the second one kills the services."""
    stop = Stop()

    def receive(number: int, _frame: object) -> None:
        if number == signal.SIGINT and stop.cancellable:
            stop.cancellable = False  # the next one comes while the first is handled, and ends the program
            raise KeyboardInterrupt
        running = services()
        if stop.is_set() and running is not None:
            running.kill()
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, receive)
    return stop
