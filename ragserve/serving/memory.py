"""Keeps what a service has freed from staying with its process, and what it has loaded from holding up its threads.

Left to itself, glibc's allocator raises the size from which on a block is mapped on its own (and so returned when
freed) up to 32 MB, and keeps a heap for each of the many threads. A retriever that rebuilt a knowledge base of 20,000
passages ten times kept a third more memory than before; a generator that quantized BART-large 0.7 GB, now nothing.

What is smaller than such a block is kept at the end of the heap up to `KEPT_BYTES`. With 32 MB a retriever that took
10,000 passages and rebuilt its index 24 times had 7 % more than before and the new passages, with 2 MB 2 %, and it
searched as fast. A generator keeps more once its model is loaded: returning the temporaries of every decode step took a
third of the time of selecting its candidates, and five documents of 160 tokens, encoded together, took 20,000 page
faults, a twelfth of the time.
"""

from __future__ import annotations

import ctypes
import gc
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # malloc.h
MAPPED_BYTES = 4 * 2**20  # blocks from this size on are mapped on their own
KEPT_BYTES = 2 * 2**20
TEMPORARY_MAPPED_BYTES = 8 * 2**20  # with 32 MB 16 sessions had 180 MB more, in the gaps between what they keep
TEMPORARY_KEPT_BYTES = 64 * 2**20
MAX_ARENAS = 4
PRODUCTS_KEPT = 256  # steps of up to 16 rows need 112, and the length of a document five


def keep_memory_low() -> None:
    """Tell the allocator once, before anything large is loaded."""
    _set(mapped=MAPPED_BYTES, kept=KEPT_BYTES)


def keep_temporaries() -> None:
    """Tell it that nothing large is loaded any more: what a pass needs stays for the next one."""
    _set(mapped=TEMPORARY_MAPPED_BYTES, kept=TEMPORARY_KEPT_BYTES)


def keep_few_products() -> None:
    """Bounds what oneDNN and torch keep to multiply in float32, unless the environment says so; before torch is loaded.

    For each shape, number of rows included, code is generated: 0.2 ms and 0.65 MB. By default each of them keeps 1,024,
    so a generator of any size comes to have 0.6 GB more, and with this bound 0.17.
    """
    if "DNNL_PRIMITIVE_CACHE_CAPACITY" not in os.environ:  # as oneDNN calls it, too
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(PRODUCTS_KEPT))
    os.environ.setdefault("LRU_CACHE_CAPACITY", str(PRODUCTS_KEPT))  # ideep's, between torch and oneDNN


def leave_out_what_is_loaded() -> None:
    """Tell Python's garbage collector, once all is loaded, that nothing of it is garbage.

    It holds up every thread while it looks through all objects, now and then: 110,000 of a retriever, nearly all of
    them of modules, in 64 ms, and longer where the thread that set it off has a low priority. From now on it looks
    through what has been made since.
    """
    gc.collect()
    gc.freeze()


def _set(mapped: int, kept: int) -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, mapped)
        libc.mallopt(M_TRIM_THRESHOLD, kept)
        libc.mallopt(M_ARENA_MAX, MAX_ARENAS)


def trim() -> None:
    """Return what was freed to the system."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
