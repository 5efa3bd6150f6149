"""Keeps what old versions and old indexes held from staying with the process, where the allocator is glibc's.

A rebuild allocates a whole knowledge base and frees the one before. Left to itself, glibc raises the size from which
on a block is mapped on its own (and so returned when freed), and keeps a heap for each of the many threads that read:
after ten rebuilds of 20,000 passages a third more memory stayed resident than before them, now 6 %.
"""

from __future__ import annotations

import ctypes

import pyarrow as pa

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # malloc.h
MAPPED_BYTES = 4 * 2**20  # blocks from this size on are mapped on their own
MAX_ARENAS = 4


def keep_memory_low() -> None:
    """Tell the allocator once, before anything large is loaded."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)
        libc.mallopt(M_ARENA_MAX, MAX_ARENAS)


def give_back_memory() -> None:
    """Return what was freed to the system."""
    pa.default_memory_pool().release_unused()
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
