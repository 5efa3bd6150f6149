"""Which places of the self-attention cache are in use. Pure bookkeeping: the tensors are in `kv_cache`.

A slot holds the keys and values of one decoder token of one row. A hypothesis is the list of slots along its path, so
a beam reorder copies no tensor: children share their parent's slots, and a slot is free when no path holds it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

SlotArray = npt.NDArray[np.int64]
INITIAL_SLOTS = 1024


class PathNode:
    """The last token of a path, its slots [n_rows], and the path before it, which it holds.

    Paths that begin alike share nodes. So whoever holds a path holds its last node only, however long it is.
    """

    __slots__ = ("holders", "parent", "slots")

    def __init__(self, slots: SlotArray, parent: PathNode | None) -> None:
        """A node that its maker holds."""
        self.slots = slots
        self.parent = parent
        self.holders = 1
        if parent is not None:
            parent.holders += 1


class SlotPool:
    """Slots in use and free ones."""

    def __init__(self) -> None:
        self._size = INITIAL_SLOTS
        self._free = list(range(INITIAL_SLOTS - 1, -1, -1))

    @property
    def size(self) -> int:
        """Slots there are, free or not; grows by doubling."""
        return self._size

    @property
    def used(self) -> int:
        """Slots that are not free."""
        return self._size - len(self._free)

    def allocate(self, count: int) -> SlotArray:
        """`count` free slots, in use from now on."""
        while len(self._free) < count:
            self._free = list(range(2 * self._size - 1, self._size - 1, -1)) + self._free
            self._size *= 2
        left = len(self._free) - count
        taken = self._free[left:]
        del self._free[left:]
        return np.array(taken, dtype=np.int64)

    def shrink(self, size: int) -> None:
        """Forget the slots from `size` on, which nobody may hold."""
        self._size = min(self._size, size)
        self._free = [slot for slot in self._free if slot < size]

    def release(self, path: PathNode) -> None:
        """One less holds this path: the slots that nobody holds any more are free."""
        node: PathNode | None = path
        while node is not None:
            node.holders -= 1
            if node.holders:
                return
            self._free += node.slots.tolist()
            node = node.parent
