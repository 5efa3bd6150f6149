"""What `ragserve up` starts: the three services, their flags and where they listen."""

from __future__ import annotations

import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ragserve.errors import InvalidInputError, NotFoundError
from ragserve.files import read_toml
from ragserve.targets import LARGEST_PORT

HOST = "127.0.0.1"
DEFAULT_PORTS = {"retriever": (50061, 9461), "generator": (50062, 9462), "orchestrator": (50051, 9451)}
MODULES = {"retriever": "retriever_svc", "generator": "generator_svc", "orchestrator": "orchestrator"}
NEEDS = {"retriever": ("model", "knowledge"), "generator": ("model",), "orchestrator": ()}
EMBEDDED = {"model": "model", "knowledge": "kb"}  # below demo_directory()


@dataclass(frozen=True)
class Launch:
    """One service to start: `python -m module arguments`."""

    name: str
    module: str
    arguments: tuple[str, ...]
    host: str
    port: int
    metrics_host: str
    metrics_port: int
    taken_port: int = 0  # the usual port, if another process has it and `port` is used in its place

    @property
    def target(self) -> str:
        """Where this machine reaches the service."""
        return address(reachable(self.host), self.port)


def demo_directory() -> Path:
    """The embedded models, knowledge base and questions.

    Raises:
        NotFoundError: this installation does not have them.
    """
    directory = Path(__file__).resolve().parent.parent / "demo"
    if not (directory / "model").is_dir() or not (directory / "kb").is_dir():
        raise NotFoundError(
            f"{directory} does not hold the embedded model and knowledge base: give --model and --knowledge",
            field=str(directory),
        )
    return directory


@dataclass(frozen=True)
class Assets:
    """What the flags of `up` and `demo` name; None: as the environment or the configuration file says."""

    config: Path | None = None
    model: Path | None = None
    knowledge: Path | None = None
    lexical: bool | None = None


def plan(assets: Assets, *, free_ports: bool = False) -> tuple[Launch, ...]:
    """The three services, on ports that are free.

    Flags win over the environment, that over the file, that over the defaults, as in the services themselves; a port
    0 becomes a free one. Without any model or knowledge base, the embedded ones are served, the knowledge base
    read-only. With `free_ports`, a default port that is in use is replaced by a free one.

    Raises:
        InvalidInputError: a port is in use, or the file cannot be read.
        NotFoundError: nothing is named, and there are no embedded assets.
    """
    config, known = assets.config, Settings.read(assets.config)
    paths = {"model": assets.model, "knowledge": assets.knowledge}
    chosen: dict[str, list[str]] = {}
    embedded: set[str] = set()
    for name, needs in NEEDS.items():
        chosen[name] = ["--config", str(config)] if config else []
        for key in needs:
            if (given := paths[key]) is not None:
                chosen[name] += [f"--{key}", str(given.resolve())]
            elif known.get(name, key) is None:
                chosen[name] += [f"--{key}", str(demo_directory() / EMBEDDED[key])]
                embedded.add(key)
    if "knowledge" in embedded and known.get("retriever", "writable") is None:
        chosen["retriever"].append("--no-writable")  # the embedded knowledge base belongs to the installation
    if assets.lexical is not None:
        chosen["retriever"].append("--lexical" if assets.lexical else "--no-lexical")
    taken: set[int] = set()
    downstream = [_launch(known, name, chosen[name], taken, free_ports) for name in ("retriever", "generator")]
    chosen["orchestrator"] += [f"--{launch.name}={launch.target}" for launch in downstream]
    return (*downstream, _launch(known, "orchestrator", chosen["orchestrator"], taken, free_ports))


def address(host: str, port: int) -> str:
    """host:port, with brackets around IPv6 addresses."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reachable(host: str) -> str:
    """The address to connect to for a service bound to `host`."""
    return {"0.0.0.0": HOST, "::": "::1"}.get(host, host)  # noqa: S104


@dataclass(frozen=True)
class Settings:
    """What file and environment say, by service; only a few keys are looked at, the services check them all."""

    file: dict[str, Any]

    @classmethod
    def read(cls, config: Path | None) -> Settings:
        """Raises InvalidInputError when the file cannot be read."""
        if config is None:
            return cls({})
        return cls(read_toml(config))

    def get(self, service: str, *path: str) -> Any:
        """The value at `path` of a service, or None."""
        variable = f"RAGSERVE_{service}_{'__'.join(path)}".upper()
        if variable in os.environ:
            return os.environ[variable]
        value: Any = self.file.get(service)
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value


def _launch(known: Settings, name: str, arguments: list[str], taken: set[int], free_ports: bool) -> Launch:
    """A service on ports that are free and not in `taken`, to which they are added."""
    usual, usual_metrics = DEFAULT_PORTS[name]
    host, port = _place(known, name, "", usual, taken, free_ports)
    metrics_host, metrics_port = _place(known, name, "metrics_", usual_metrics, taken, free_ports)
    flags = (f"--server.port={port}", f"--server.metrics-port={metrics_port}")
    moved = known.get(name, "server", "port") is None and port != usual
    return Launch(
        name, MODULES[name], (*arguments, *flags), host, port, metrics_host, metrics_port, usual if moved else 0
    )


def _place(
    known: Settings, service: str, prefix: str, usual: int, taken: set[int], free_ports: bool
) -> tuple[str, int]:
    """Host and port of gRPC, or of metrics (`prefix`)."""
    host = str(known.get(service, "server", f"{prefix}host") or HOST)
    value = known.get(service, "server", f"{prefix}port")
    setting = f"{service} server.{prefix}port"
    movable = str(value) == "0" or (value is None and free_ports)
    try:
        port = _free_port(host, usual if value is None else value, setting)
    except InvalidInputError:
        if not movable:
            raise
        port = _free_port(host, 0, setting)
    while port in taken:
        if not movable:
            raise InvalidInputError(setting, f"port {port} is given to two services")
        port = _free_port(host, 0, setting)
    taken.add(port)
    return host, port


def _free_port(host: str, value: Any, setting: str) -> int:
    """The port, or a free one for 0.

    Raises:
        InvalidInputError: it is in use, or no port.
    """
    port = int(value) if isinstance(value, int) or re.fullmatch(r"\d{1,5}", str(value)) else -1
    if not 0 <= port <= LARGEST_PORT:
        raise InvalidInputError(setting, f"{value!r} is not a port")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except (TypeError, ValueError) as error:  # a NUL, or letters that no name of a host has
        raise InvalidInputError(f"{setting.removesuffix('port')}host", f"{host!r} is no name of a host") from error
    except OSError as error:
        service, _, key = setting.partition(" ")
        variable = f"RAGSERVE_{service}_{key.replace('.', '__')}".upper()
        raise InvalidInputError(
            setting,
            f"cannot listen on {address(host, port)}: {(error.strerror or str(error)).lower()} (is ragserve up "
            f"already?); choose another port with {variable} or in the file given by --config",
        ) from error
