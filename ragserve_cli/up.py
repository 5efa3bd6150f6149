"""`ragserve up`: the three services on this machine."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from rich.table import Table

from ragserve_cli import console
from ragserve_cli.choices import DEFAULT_TARGET
from ragserve_cli.local import LocalServices, LogLine, Stop, stop_on_signals
from ragserve_cli.plan import Assets, Launch, address, plan, reachable


@dataclass(frozen=True)
class Running:
    """Services that are healthy, and the event that a signal sets."""

    launches: tuple[Launch, ...]
    services: LocalServices
    stop: Stop

    @property
    def target(self) -> str:
        """Where the public API is."""
        return self.launches[-1].target

    @contextmanager
    def cancellable(self) -> Iterator[None]:
        """At a terminal, Ctrl-C ends only this block, and what comes after it goes on."""
        self.stop.cancellable = sys.stdin.isatty()
        try:
            yield
        except KeyboardInterrupt:
            console.note("cancelled")
        finally:
            self.stop.cancellable = False


@contextmanager
def running(launches: tuple[Launch, ...], log: LogLine, timeout: float) -> Iterator[Running | None]:
    """Start the services, wait until they are healthy, and drain them at the end.

    None when a signal came while they were loading.

    Raises:
        UnavailableError: one of them ended, or is not healthy in time.
        InvalidInputError: one of them refused its settings.
    """
    holder: list[LocalServices] = []
    stop = stop_on_signals(lambda: holder[0] if holder else None)
    with LocalServices(launches, log) as services:
        holder.append(services)
        if _wait(services, launches, stop, timeout):
            yield Running(launches, services, stop)
        else:
            yield None


def up(assets: Assets, timeout: float) -> None:
    """Run the services until SIGINT or SIGTERM."""
    launches = plan(assets)
    with running(launches, console.log_line, timeout) as started:
        if started is None:
            console.note("stopped while starting")
            return
        console.err.print(addresses(launches))
        console.note(f"ready at {started.target}: try '{ask_command(started)}' in another terminal; Ctrl-C stops")
        started.services.watch(started.stop)
        console.note("draining")
    console.note("stopped")


def note_other_ports(launches: Sequence[Launch]) -> None:
    """Says which usual ports are taken, and what is used in their place."""
    moved = [launch for launch in launches if launch.taken_port]
    if moved:
        taken = ", ".join(str(launch.taken_port) for launch in moved)
        used = ", ".join(f"{launch.port} ({launch.name})" for launch in moved)
        ports = f"port {taken} is" if len(moved) == 1 else f"ports {taken} are"
        console.note(f"{ports} taken (another ragserve?): using {used}")


def ask_command(started: Running) -> str:
    """How the services are asked from another terminal."""
    target = "" if started.target == DEFAULT_TARGET else f"--target {started.target} "
    return f'ragserve ask {target}"..."'


def addresses(launches: Sequence[Launch]) -> Table:
    """Where the services are."""
    table = Table("service", "gRPC", "metrics")
    for launch in launches:
        metrics = address(reachable(launch.metrics_host), launch.metrics_port)
        table.add_row(launch.name, launch.target, f"http://{metrics}/metrics")
    return table


def _wait(services: LocalServices, launches: Sequence[Launch], stop: Stop, timeout: float) -> bool:
    begun = time.monotonic()
    names = ", ".join(launch.name for launch in launches)
    with console.progress_bar(f"starting {names}") as bar:
        ready: list[str] = []
        bar.update(0, len(launches))
        return services.wait_ready(stop, _counter(ready, len(launches), bar, begun), timeout)


def _counter(ready: list[str], total: int, bar: console.ProgressBar, begun: float) -> Callable[[str], None]:
    def count(name: str) -> None:
        ready.append(name)
        bar.update(len(ready), total)
        console.note(f"{name} is healthy after {time.monotonic() - begun:.1f} s")

    return count
