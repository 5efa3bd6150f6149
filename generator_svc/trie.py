"""Token sequences merged by their common beginnings: identical prefixes are decoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]
# Nodes of one tree, unless a single sequence has more. Every node looks at all of them, and so many take a fifth less
# time than 1,024 (80 targets of 20 tokens).
MAX_NODES = 128


@dataclass(frozen=True)
class Trie:
    """Nodes in an order in which parents come first.

    `tokens`, `depths` and `parents` (-1: none) are [n_nodes]; `paths[i]` are the nodes along sequence i.
    """

    tokens: Indices
    depths: Indices
    parents: Indices
    paths: tuple[Indices, ...]

    @property
    def size(self) -> int:
        """Number of nodes."""
        return len(self.tokens)

    @cached_property
    def visible(self) -> npt.NDArray[np.bool_]:
        """[n_nodes, n_nodes]: whether a node sees another (its ancestors and itself)."""
        visible = np.eye(self.size, dtype=np.bool_)
        for node, parent in enumerate(self.parents.tolist()):
            if parent >= 0:
                visible[node] |= visible[parent]
        return visible


class _Growing:
    """Nodes by their parent and token."""

    def __init__(self) -> None:
        self.nodes: dict[tuple[int, int], int] = {}

    def missing(self, sequence: Sequence[int]) -> int:
        """Nodes that the sequence would add."""
        node = -1
        for depth, token in enumerate(sequence):
            child = self.nodes.get((node, token))
            if child is None:
                return len(sequence) - depth
            node = child
        return 0

    def add(self, sequence: Sequence[int]) -> list[int]:
        """The nodes along a sequence."""
        path, node = [], -1
        for token in sequence:
            node = self.nodes.setdefault((node, token), len(self.nodes))
            path.append(node)
        return path


def build_trie(sequences: Sequence[Sequence[int]]) -> Trie:
    """Merge sequences; an empty one has an empty path."""
    growing = _Growing()
    paths = [growing.add(sequence) for sequence in sequences]
    parents, tokens = zip(*growing.nodes, strict=True) if growing.nodes else ((), ())
    depths = np.zeros(len(tokens), dtype=np.int64)
    for path in paths:
        depths[path] = np.arange(len(path))
    arrays = [np.array(values, dtype=np.int64) for values in (tokens, parents)]
    return Trie(arrays[0], depths, arrays[1], tuple(np.array(path, dtype=np.int64) for path in paths))


def in_groups(sequences: Sequence[Sequence[int]], max_nodes: int = MAX_NODES) -> list[list[int]]:
    """Indices in order, in groups whose tries have at most `max_nodes` nodes where no sequence alone has more."""
    groups: list[list[int]] = []
    growing = _Growing()
    for i, sequence in enumerate(sequences):
        if not groups or len(growing.nodes) + growing.missing(sequence) > max_nodes:
            growing = _Growing()
            groups.append([])
        growing.add(sequence)
        groups[-1].append(i)
    return groups
