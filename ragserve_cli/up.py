"""`ragserve up`: the three services on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event

from rich.table import Table

from ragserve_cli import console
from ragserve_cli.choices import DEFAULT_TARGET
from ragserve_cli.local import LocalServices, LogLine, stop_on_signals
from ragserve_cli.plan import Assets, Launch, address, plan, reachable

STARTUP_SECONDS = 180.0


@dataclass(frozen=True)
class Running:
    """Services that are healthy, and the event that a signal sets."""

    launches: tuple[Launch, ...]
    services: LocalServices
    stop: Event

    @property
    def target(self) -> str:
        """Where the public API is."""
        return self.launches[-1].target


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
        flag = "" if started.target == DEFAULT_TARGET else f" --target {started.target}"
        console.note(f"ready at {started.target}: try 'ragserve ask{flag} \"...\"' in another terminal; Ctrl-C stops")
        started.services.watch(started.stop)
        console.note("draining")
    console.note("stopped")


def addresses(launches: Sequence[Launch]) -> Table:
    """Where the services are."""
    table = Table("service", "gRPC", "metrics")
    for launch in launches:
        metrics = address(reachable(launch.metrics_host), launch.metrics_port)
        table.add_row(launch.name, launch.target, f"http://{metrics}/metrics")
    return table


def _wait(services: LocalServices, launches: Sequence[Launch], stop: Event, timeout: float) -> bool:
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
