"""Who may import whom, and how large a file and a function may be. Read from the source with `ast`."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SERVICES = ("retriever_svc", "generator_svc", "orchestrator")
LEAVES = ("training", "bench", "checkpoint_import", "ragserve_cli")
PACKAGES = ("ragserve", *SERVICES, *LEAVES)

# A leaf may be used by the leaves named here: the command line and the training drive the import.
LEAF_USERS = {
    "checkpoint_import": ("ragserve_cli", "training"),
    "training": ("bench",),
    "bench": (),
    "ragserve_cli": (),
}
# What a package never loads, not even through something it imports.
FORBIDDEN = {
    "ragserve": ("torch", "faiss", "onnxruntime", "transformers", "tokenizers", "lance", *SERVICES, *LEAVES),
    "retriever_svc": ("torch", "transformers", "generator_svc", "orchestrator", *LEAVES),
    "generator_svc": ("faiss", "onnxruntime", "lance", "retriever_svc", "orchestrator", *LEAVES),
    "orchestrator": (
        *("torch", "faiss", "onnxruntime", "transformers", "tokenizers", "lance"),
        *("retriever_svc", "generator_svc", *LEAVES),
    ),
}
TRANSPORT = ("grpc", "grpc_health", "grpc_reflection", "grpc_status", "google", "ragserve.v1")
# The only files of a service that may name the transport.
TRANSPORT_FILES = {
    "retriever_svc": ("servicer", "convert", "__main__"),
    "generator_svc": ("servicer", "convert", "__main__"),
    "orchestrator": ("servicer", "convert", "clients", "__main__"),
}
# Words in the names of files (or folders) that must not load the transport through what they import either.
PURE = ("engine", "scheduler", "search", "marginal", "beam", "sampling", "filters", "kv_cache", "models", "index")

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50


@dataclass(frozen=True)
class Import:
    """`module` names `target` on `line`; `eager` imports run when `module` is imported."""

    module: str
    target: str
    line: int
    eager: bool


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def source_files(packages: tuple[str, ...]) -> list[Path]:
    found = [path for package in packages for path in sorted((ROOT / package).rglob("*.py"))]
    return [path for path in found if not within(module_name(path), "ragserve.v1")]


def read_sources() -> dict[str, str]:
    return {module_name(path): path.read_text(encoding="utf-8") for path in source_files(PACKAGES)}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def named_by(node: ast.AST, module: str) -> list[str]:
    """The dotted names an import statement may load: `from a import b` names both `a` and `a.b`."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            base = ".".join([*module.split(".")[: -node.level], *([base] if base else [])])
        return [base, *(f"{base}.{alias.name}" for alias in node.names)]
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
        return [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    return []


def walk(node: ast.AST, eager: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, with whether it runs at import time."""
    for child in ast.iter_child_nodes(node):
        inside = eager and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        inside = inside and not is_type_checking(child)
        yield child, inside
        yield from walk(child, inside)


def imports_of(sources: Mapping[str, str]) -> list[Import]:
    return [
        Import(module, target, getattr(node, "lineno", 0), eager)
        for module, source in sources.items()
        for node, eager in walk(ast.parse(source))
        for target in named_by(node, module)
    ]


def loaded_by(module: str, eager: Mapping[str, set[str]]) -> set[str]:
    """Everything that importing `module` loads: what it names, and what the project's modules among that name."""
    seen: set[str] = set()
    todo = [module]
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        parents = name.split(".")
        todo += [".".join(parents[:i]) for i in range(1, len(parents))]
        todo += eager.get(name, ())
    return seen - {module}


def eager_graph(imports: list[Import]) -> dict[str, set[str]]:
    graph: dict[str, set[str]] = {}
    for found in imports:
        if found.eager:
            graph.setdefault(found.module, set()).add(found.target)
    return graph


def violations(sources: Mapping[str, str]) -> list[str]:
    """One line for each import that the rules above do not allow."""
    imports = imports_of(sources)
    return sorted(
        {*direct_violations(imports), *transitive_violations(sources, eager_graph(imports)), *cycles(imports, sources)}
    )


def direct_violations(imports: list[Import]) -> Iterator[str]:
    for found in imports:
        package, where = found.module.split(".")[0], f"{found.module}:{found.line} imports {found.target}"
        if any(within(found.target, name) for name in FORBIDDEN.get(package, ())):
            yield f"{where}: {package} must not"
        for leaf, users in LEAF_USERS.items():
            if within(found.target, leaf) and package not in (leaf, *users):
                yield f"{where}: nothing imports {leaf}"
        allowed = TRANSPORT_FILES.get(package, (found.module.split(".")[-1],))
        transport = any(within(found.target, name) for name in TRANSPORT)
        if transport and found.module.split(".")[-1] not in allowed:
            yield f"{where}: the transport belongs to {', '.join(allowed)}"
        if package == "generator_svc" and "scheduler" in found.module and within(found.target, "torch"):
            yield f"{where}: the scheduler is pure Python"


def transitive_violations(sources: Mapping[str, str], eager: Mapping[str, set[str]]) -> Iterator[str]:
    for module in sources:
        package, loaded = module.split(".")[0], loaded_by(module, eager)
        banned = list(FORBIDDEN.get(package, ()))
        if package in SERVICES and any(word in part for part in module.split(".")[1:] for word in PURE):
            banned += TRANSPORT
        if package == "generator_svc" and "scheduler" in module:
            banned.append("torch")
        for name in banned:
            if any(within(target, name) for target in loaded):
                yield f"{module} loads {name}"


def cycles(imports: list[Import], sources: Mapping[str, str]) -> Iterator[str]:
    """Modules that reach themselves by import-time imports (a package and its parts do not count as one)."""
    graph = {
        name: {t for t in targets if t in sources and not within(name, t)}
        for name, targets in eager_graph(imports).items()
    }
    for start, nearest in graph.items():
        seen: set[str] = set()
        todo = list(nearest)
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += graph.get(name, ())
        if start in seen:
            yield f"{start} imports itself in a circle"


def function_lengths(source: str) -> dict[str, int]:
    """Lines of every function, signature and docstring included, decorators not."""
    return {
        f"{node.name}:{node.lineno}": (node.end_lineno or node.lineno) - node.lineno + 1
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def oversized(sources: Mapping[str, str]) -> list[str]:
    """One line for each file and function over budget."""
    files = [
        f"{name} has {count} lines"
        for name, source in sources.items()
        if (count := len(source.splitlines())) > MAX_FILE_LINES
    ]
    functions = [
        f"{name}.{function} has {count} lines"
        for name, source in sources.items()
        for function, count in function_lengths(source).items()
        if count > MAX_FUNCTION_LINES
    ]
    return files + functions


def test_imports_only_go_down() -> None:
    assert violations(read_sources()) == []


def test_no_file_or_function_is_over_budget() -> None:
    paths = [*source_files((*PACKAGES, "tests", "scripts"))]
    assert oversized({module_name(path): path.read_text(encoding="utf-8") for path in paths}) == []


GOOD = {
    "ragserve": "def __getattr__(name):\n    from ragserve.client import Client\n    return Client",
    "ragserve.client": "import grpc\nfrom ragserve.v1 import common_pb2",
    "ragserve.serving.metrics": "import prometheus_client",
    "orchestrator.search": "from ragserve.serving.metrics import Metrics\nimport numpy",
    "orchestrator.clients": "import grpc\nfrom ragserve.v1 import generator_pb2",
    "orchestrator.servicer": "import grpc\nfrom orchestrator import search",
    "generator_svc.scheduler": "import heapq",
    "generator_svc.engine": "import torch\nfrom generator_svc import scheduler",
    "ragserve_cli.main": "def kb():\n    import retriever_svc.knowledge\n    import checkpoint_import.main",
}


@pytest.mark.parametrize(
    ("module", "source", "said"),
    [
        ("ragserve.client", "from generator_svc import engine", "ragserve must not"),
        ("ragserve.serving.metrics", "import torch", "ragserve must not"),
        ("orchestrator.search", "import generator_svc.engine", "orchestrator must not"),
        ("orchestrator.search", "def late():\n    import torch.nn", "orchestrator must not"),
        ("orchestrator.search", "import importlib\nimportlib.import_module('torch')", "orchestrator must not"),
        ("orchestrator.search", "import grpc", "the transport belongs to"),
        ("orchestrator.search", "from ragserve.v1 import common_pb2", "the transport belongs to"),
        ("orchestrator.search", "from ragserve import v1", "the transport belongs to"),
        ("orchestrator.search", "from orchestrator.clients import x", "orchestrator.search loads grpc"),
        ("orchestrator.search", "from .clients import x", "orchestrator.search loads grpc"),
        ("orchestrator.search", "from ragserve.client import Client", "orchestrator.search loads ragserve.v1"),
        ("ragserve", "from ragserve.client import Client", "orchestrator.search loads grpc"),
        ("retriever_svc.engine", "import transformers", "retriever_svc must not"),
        ("retriever_svc.clients", "import grpc", "the transport belongs to"),
        ("generator_svc.engine", "import faiss", "generator_svc must not"),
        ("generator_svc.scheduler", "from torch import nn", "the scheduler is pure Python"),
        ("generator_svc.scheduler", "import generator_svc.engine", "generator_svc.scheduler loads torch"),
        ("generator_svc.scheduler", "import generator_svc.engine", "in a circle"),
        ("retriever_svc.engine", "import bench.tables", "nothing imports bench"),
        ("checkpoint_import.main", "import ragserve_cli.main", "nothing imports ragserve_cli"),
    ],
)
def test_the_checker_catches(module: str, source: str, said: str) -> None:
    assert violations(GOOD) == []
    assert any(said in line for line in violations({**GOOD, module: source})), violations({**GOOD, module: source})


def test_the_checker_allows_types_only_and_late_imports_of_what_is_allowed() -> None:
    late = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from generator_svc.engine import Engine"
    assert violations({**GOOD, "generator_svc.scheduler": late}) == []


def test_the_budget_catches() -> None:
    body = "\n".join(f"    x = {i}" for i in range(MAX_FUNCTION_LINES))
    assert oversized({"m": f"def f():\n{body}\n"}) == ["m.f:1 has 51 lines"]
    assert oversized({"m": "\n" * (MAX_FILE_LINES + 1)}) == ["m has 401 lines"]


def test_the_generator_reads_its_settings_before_it_loads_torch() -> None:
    """A wrong flag need not wait for torch, and how its threads wait must be said before it is there."""
    script = "import sys, generator_svc.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
