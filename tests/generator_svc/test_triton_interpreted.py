"""The Triton kernels in Triton's interpreter against their twins; it is chosen for a whole process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]
ROOT = Path(__file__).resolve().parents[2]
CHOSEN = "not selection or 16-3"  # the larger vocabularies take minutes


def test_the_kernels_equal_their_twins() -> None:
    command = [sys.executable, "-m", "pytest", "tests/gpu/test_kernels.py", "-k", CHOSEN, "-W", "default", "-q"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [*command, "-p", "no:cacheprovider"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "skipped" not in done.stdout
