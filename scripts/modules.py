"""Prints one line per module: `python scripts/modules.py [FOLDER...]`."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = (
    "ragserve",
    "ragserve_cli",
    "orchestrator",
    "retriever_svc",
    "generator_svc",
    "checkpoint_import",
    "training",
    "bench",
)
COLUMN = 40  # characters


def first_line(path: Path) -> str:
    """The first line of a module's docstring; empty if it has none."""
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").partition("\n")[0]


def main() -> None:
    """Print the modules of the given folders, or of all packages."""
    for folder in sys.argv[1:] or PACKAGES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if "v1" in path.parts:
                continue
            name = str(path.relative_to(ROOT))
            if path.name != "__init__.py":
                print(f"{name:<{COLUMN}}  {first_line(path)}")
            elif line := first_line(path):
                print(f"\n{name.removesuffix('__init__.py'):<{COLUMN}}  {line}")


if __name__ == "__main__":
    main()
