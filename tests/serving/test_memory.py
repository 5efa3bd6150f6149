"""Settings of memory; the allocator's in a process of their own: they last as long as it does."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from ragserve.serving.memory import keep_few_products

# Page faults of writing to 6 MB, freed and taken again, before and after what is under test.
PROGRAM = """
import ctypes, resource
from ragserve.serving.memory import {setting}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
def write():
    block = libc.malloc(6 * 2**20)
    ctypes.memset(block, 1, 6 * 2**20)
    libc.free(block)
{setting}()
write()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
write()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="settings of glibc")
def test_temporaries_stay_once_nothing_large_is_loaded_any_more() -> None:
    def faults(setting: str) -> int:
        program = PROGRAM.format(setting=setting)
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("keep_memory_low") > 1000
    assert faults("keep_temporaries") < 100


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("256", "256")),
        ({"LRU_CACHE_CAPACITY": "5"}, ("256", "5")),
        ({"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "5"}, ("5", "256")),
        ({"DNNL_PRIMITIVE_CACHE_CAPACITY": "5"}, (None, "256")),
    ],
)
def test_few_products_are_kept_unless_told_otherwise(
    given: dict[str, str], expected: tuple[str | None, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
    for name in (*names, "DNNL_PRIMITIVE_CACHE_CAPACITY"):
        monkeypatch.setenv(name, "")  # so that it is put back whatever happens
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    keep_few_products()
    assert tuple(map(os.environ.get, names)) == expected
