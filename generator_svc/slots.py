"""Which places of the self-attention cache are in use. Pure bookkeeping: the tensors are in `kv_cache`.

A slot holds the keys and values of one decoder token of one row. A hypothesis is the list of slots along its path, so
a beam reorder copies no tensor: children share their parent's slots, and a slot is free when no path holds it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

SlotArray = npt.NDArray[np.int64]
INITIAL_SLOTS = 1024
ONE = np.int32(1)  # of the type of the counts: another is converted, at ten times the cost


class SlotPool:
    """Counts, for every slot, the paths that hold it."""

    def __init__(self) -> None:
        self._holders = np.zeros(INITIAL_SLOTS, dtype=np.int32)
        self._free = list(range(INITIAL_SLOTS - 1, -1, -1))

    @property
    def size(self) -> int:
        """Slots there are, free or not; grows by doubling."""
        return len(self._holders)

    @property
    def used(self) -> int:
        """Slots held by at least one path."""
        return len(self._holders) - len(self._free)

    def allocate(self, count: int) -> SlotArray:
        """`count` slots held by nobody yet; each must be retained at once."""
        while len(self._free) < count:
            size = self.size
            self._holders = np.concatenate([self._holders, np.zeros(size, dtype=np.int32)])
            self._free = list(range(2 * size - 1, size - 1, -1)) + self._free
        left = len(self._free) - count
        taken = self._free[left:]
        del self._free[left:]
        return np.array(taken, dtype=np.int64)

    def shrink(self, size: int) -> None:
        """Forget the slots from `size` on, which nobody may hold."""
        self._holders = self._holders[:size]
        self._free = [slot for slot in self._free if slot < size]

    def retain(self, paths: Sequence[SlotArray]) -> None:
        """One more path each holds these slots."""
        np.add.at(self._holders, _flat(paths), ONE)

    def release(self, paths: Sequence[SlotArray]) -> None:
        """These paths hold their slots no longer."""
        flat = _flat(paths)
        np.subtract.at(self._holders, flat, ONE)
        self._free.extend(set(flat[self._holders[flat] == 0].tolist()))


def _flat(paths: Sequence[SlotArray]) -> SlotArray:
    return np.concatenate([path.reshape(-1) for path in paths]) if paths else np.zeros(0, np.int64)
