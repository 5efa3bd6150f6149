"""Services as real processes: started, waited for, stopped. Shared with the system tests."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = Path(__file__).resolve().parent.parent
READY_SECONDS = 110.0  # a cold import of torch on a busy machine
STOP_SECONDS = 30.0
PORTS = range(15_000, 32_000)  # below those that systems give to outgoing connections
# Asks again soon where nobody listens yet; gRPC's own pauses grow to two minutes.
RECONNECT = (("grpc.min_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500))
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


class NotReadyError(Exception):
    """A service ended, or did not become healthy in time; the message holds the end of its log."""


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on; held together, so that no two are the same.

    Not the system's own choice: that one it may give to a connection of anybody's before a service is up to listen.
    """
    sockets, ports = list[socket.socket](), list[int]()
    try:
        while len(ports) < count:
            port = random.SystemRandom().choice(PORTS)
            sockets.append(socket.socket())
            with suppress(OSError):  # somebody listens there
                sockets[-1].bind(("127.0.0.1", port))
                ports.append(port)
        return ports
    finally:
        for each in sockets:
            each.close()


def clean_environment(threads: int) -> dict[str, str]:
    """The environment with the thread counts set and no setting of ours left over."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAGSERVE_")}
    return {**kept, **dict.fromkeys(THREAD_VARIABLES, str(threads)), "TOKENIZERS_PARALLELISM": "false"}


@dataclass(frozen=True)
class ServiceProcess:
    """One service on this machine."""

    name: str
    port: int
    metrics_port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def target(self) -> str:
        """Where it answers."""
        return f"127.0.0.1:{self.port}"

    def log_text(self) -> str:
        """What it wrote to stdout and stderr so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def metric(self, name: str) -> float:
        """A value of its metrics port, over all labels; 0 where it is not there yet."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=30) as response:
            return metric_total(response.read().decode(), name)

    def wait_healthy(self, seconds: float = READY_SECONDS) -> ServiceProcess:
        """Returns once the health service says SERVING.

        Raises:
            NotReadyError: the process ended or the time passed.
        """
        deadline, answer = time.monotonic() + seconds, "nothing"
        with grpc.insecure_channel(self.target, options=RECONNECT) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while time.monotonic() < deadline and self.process.poll() is None:
                try:
                    status = stub.Check(health_pb2.HealthCheckRequest(), timeout=2, wait_for_ready=True).status
                    if status == health_pb2.HealthCheckResponse.SERVING:
                        return self
                    answer = health_pb2.HealthCheckResponse.ServingStatus.Name(status)
                except grpc.RpcError as error:
                    answer = f"{error.code().name}: {error.details()}"
                time.sleep(0.05)
        ended = self.process.poll()
        state = f"is not healthy after {seconds:.0f} s" if ended is None else f"ended with {ended}"
        self.kill()
        what = f"{self.name} {state}; health said {answer}"
        raise NotReadyError(f"{what}; its log:\n{self.log_text()[-4000:]}")

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self.process.send_signal(signal.SIGTERM)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Waits for the end; the exit status."""
        return self.process.wait(seconds)

    def stop(self) -> int:
        """SIGTERM, then the exit status; killed when it does not end."""
        if self.process.poll() is None:
            self.terminate()
        try:
            return self.wait()
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def kill(self) -> None:
        """Ends it at once."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def metric_total(page: str, name: str) -> float:
    """The sum of all samples of one name on a page of metrics."""
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)}(?:{{.*}})? (\S+)$", page, re.MULTILINE))


def flag(name: str, value: object) -> str:
    """A setting on the command line."""
    if isinstance(value, bool):
        return f"--{name}" if value else f"--no-{name}"
    return f"--{name}={value}"


def start(module: str, flags: Mapping[str, object], logs: Path, *, threads: int = 1) -> ServiceProcess:
    """Starts `python -m module` on free ports, or those that the flags name; does not wait."""
    free = dict(zip(("server.port", "server.metrics_port"), free_ports(2), strict=True))
    settings = {**free, **flags}
    port, metrics_port = (int(str(settings[name])) for name in free)
    arguments = [flag(name.replace("_", "-"), value) for name, value in settings.items()]
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"{module}-{port}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            cwd=ROOT,
            env=clean_environment(threads),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    return ServiceProcess(module, port, metrics_port, process, log)


@contextmanager
def running(*processes: ServiceProcess) -> Iterator[None]:
    """Waits until all are healthy, and stops them at the end."""
    try:
        for process in processes:
            process.wait_healthy()
        yield
    finally:
        for process in reversed(processes):
            if process.process.poll() is None:
                process.terminate()
        for process in reversed(processes):
            process.stop()
