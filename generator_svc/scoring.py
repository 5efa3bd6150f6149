"""Scores targets under every document in as few passes as fit: merged by common prefixes, in bounded chunks.

RAG-sequence, thorough decoding: p(y|x) = sum over z of p(z|x) prod over i of p(y_i | x, z, y_<i) (Lewis et al.,
sections 2.1 and 2.5). The generator returns the inner log-probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from generator_svc.commands import Floats, TargetScore
from generator_svc.models.base import DocumentState
from generator_svc.runner import Runner
from generator_svc.trie import MAX_NODES, Trie, build_trie, in_groups
from ragserve.errors import InternalError


@dataclass(frozen=True)
class Chunk:
    """Some targets as one tree, under some documents. `columns[i][t]` is where target i's token t is in `wanted`."""

    targets: tuple[int, ...]
    documents: range
    trie: Trie
    wanted: npt.NDArray[np.int64]  # [n_nodes, n_wanted]
    columns: tuple[npt.NDArray[np.int64], ...]


@dataclass
class ScoreJob:
    """The targets of one request and what is known of them; [n_docs, n_tokens] for each."""

    targets: tuple[tuple[int, ...], ...]
    chunks: list[Chunk]
    results: list[Floats] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Nothing left to run."""
        return not self.chunks

    def run_chunk(self, runner: Runner, documents: Sequence[DocumentState]) -> None:
        """Run the next chunk.

        Raises:
            InternalError: a log-probability is NaN.
        """
        chunk = self.chunks.pop(0)
        scores = runner.score([documents[i] for i in chunk.documents], chunk.trie, chunk.wanted)
        if np.isnan(scores).any():
            raise InternalError("the model's logits hold NaN")
        for target, path, columns in zip(chunk.targets, chunk.trie.paths, chunk.columns, strict=True):
            self.results[target][chunk.documents] = scores[:, path, columns]

    def scores(self) -> tuple[TargetScore, ...]:
        """The finished scores."""
        return tuple(TargetScore(ids, result) for ids, result in zip(self.targets, self.results, strict=True))


def plan_scores(targets: Sequence[tuple[int, ...]], n_docs: int, start_token: int, max_rows: int) -> ScoreJob:
    """Split the work: a new tree when the present one is full, then as many documents as fit a pass of `max_rows`."""
    chunks = []
    inputs = [_inputs(target, start_token) for target in targets]
    for group in in_groups(inputs, min(MAX_NODES, max_rows)):
        trie, wanted, columns = _tree([targets[i] for i in group], start_token)
        together = max(1, max_rows // trie.size)
        for first in range(0, n_docs, together):
            documents = range(first, min(first + together, n_docs))
            chunks.append(Chunk(tuple(group), documents, trie, wanted, columns))
    results = [np.zeros((n_docs, len(target)), dtype=np.float32) for target in targets]
    return ScoreJob(tuple(targets), chunks, results)


def _inputs(target: Sequence[int], start_token: int) -> tuple[int, ...]:
    """The decoder's input: the start token, then all but the last token of the target."""
    return (start_token, *target[:-1])


def _tree(
    targets: Sequence[tuple[int, ...]], start_token: int
) -> tuple[Trie, npt.NDArray[np.int64], tuple[npt.NDArray[np.int64], ...]]:
    """The tree of the targets' inputs, the tokens asked after each node, and each target's column in them."""
    trie = build_trie([_inputs(target, start_token) for target in targets])
    asked: list[dict[int, int]] = [{} for _ in range(trie.size)]
    columns = []
    for target, path in zip(targets, trie.paths, strict=True):
        own = [asked[node].setdefault(token, len(asked[node])) for node, token in zip(path, target, strict=True)]
        columns.append(np.array(own, dtype=np.int64))
    wanted = np.zeros((trie.size, max(len(tokens) for tokens in asked)), dtype=np.int64)
    for node, tokens in enumerate(asked):
        wanted[node, : len(tokens)] = list(tokens)
    return trie, wanted, tuple(columns)
