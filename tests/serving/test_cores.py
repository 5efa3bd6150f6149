from __future__ import annotations

import os
from pathlib import Path

import pytest

from ragserve.serving.cores import allowed_cores, spin_briefly, thread_count


def test_a_containers_quota_limits_the_threads(tmp_path: Path) -> None:
    quota = tmp_path / "cpu.max"
    without = allowed_cores(quota)
    quota.write_text("max 100000\n", encoding="ascii")
    assert allowed_cores(quota) == without
    quota.write_text("50000 100000\n", encoding="ascii")
    assert allowed_cores(quota) == 1


@pytest.mark.parametrize(("variable", "threads"), [("3", 3), ("3,2", 3), ("", None), ("0", None), ("many", None)])
def test_the_setting_goes_before_the_environment_and_that_before_the_cores(
    variable: str, threads: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert thread_count(5) == 5
    assert thread_count(0) == (allowed_cores() if threads is None else threads)


@pytest.mark.parametrize(
    ("given", "expected"),
    [({}, "8000"), ({"GOMP_SPINCOUNT": "5"}, "5"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_spin_briefly_unless_told_otherwise(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.setenv(name, "")  # so that it is put back whatever happens
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    spin_briefly()
    assert os.environ.get("GOMP_SPINCOUNT") == expected
