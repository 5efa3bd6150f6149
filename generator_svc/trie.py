"""Token sequences merged by their common beginnings: identical prefixes are decoded once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Trie:
    """Nodes in an order in which parents come first.

    `tokens` and `depths` are [n_nodes]; `visible` [n_nodes, n_nodes] says whether a node sees another (its ancestors
    and itself); `paths[i]` are the nodes along sequence i.
    """

    tokens: Indices
    depths: Indices
    visible: npt.NDArray[np.bool_]
    paths: tuple[Indices, ...]

    @property
    def size(self) -> int:
        """Number of nodes."""
        return len(self.tokens)


def build_trie(sequences: Sequence[Sequence[int]]) -> Trie:
    """Merge sequences, none of them empty."""
    children: dict[tuple[int, int], int] = {}
    parents: list[int] = []
    tokens: list[int] = []
    depths: list[int] = []
    paths = []
    for sequence in sequences:
        node = -1
        path = []
        for depth, token in enumerate(sequence):
            child = children.setdefault((node, token), len(tokens))
            if child == len(tokens):
                parents.append(node)
                tokens.append(token)
                depths.append(depth)
            node = child
            path.append(node)
        paths.append(np.array(path, dtype=np.int64))
    visible = np.eye(len(tokens), dtype=np.bool_)
    for node, parent in enumerate(parents):
        if parent >= 0:
            visible[node] |= visible[parent]
    return Trie(np.array(tokens, dtype=np.int64), np.array(depths, dtype=np.int64), visible, tuple(paths))


def count_nodes(sequences: Sequence[Sequence[int]]) -> int:
    """Number of nodes that the trie of these sequences has."""
    return len({tuple(sequence[:end]) for sequence in sequences for end in range(1, len(sequence) + 1)})
