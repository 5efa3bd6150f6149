from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from generator_svc.runner import Runner
from generator_svc.scoring import plan_scores
from generator_svc.trie import MAX_NODES, build_trie, in_groups
from tests.generator_svc.support import CPU, build, load, random_tokens


@pytest.mark.parametrize("variant", ["bart", "t5", "t5-gated"])
@pytest.mark.parametrize("rows", [20, 2048])
def test_scores_equal_the_loss_of_transformers(variant: str, rows: int, tmp_path: Path) -> None:
    reference = build(variant)
    reference.save_pretrained(tmp_path)
    runner = Runner(load(tmp_path), CPU)
    rng = random.Random(3)
    contexts = [random_tokens(length, rng) for length in (12, 5, 31)]
    stem = random_tokens(6, rng)
    targets = [(*stem, 7, 8), (*stem, 7, 9), tuple(stem), (4,), (*stem, 7, 8), tuple(random_tokens(15, rng))]
    documents = runner.encode(contexts).documents
    job = plan_scores(targets, len(contexts), reference.config.decoder_start_token_id, rows)
    while not job.done:
        job.run_chunk(runner, documents)
    for target, score in zip(targets, job.scores(), strict=True):
        assert score.token_ids == target
        for document, context in enumerate(contexts):
            with torch.no_grad():
                loss = reference(input_ids=torch.tensor([context]), labels=torch.tensor([target])).loss
            np.testing.assert_allclose(-score.log_probs[document].mean(), loss.item(), atol=1e-4)


def test_targets_with_a_common_beginning_are_decoded_once() -> None:
    job = plan_scores([(5, 6, 7, 8), (5, 6, 7, 9), (5, 6, 7, 8)], 4, 2, 256)
    (chunk,) = job.chunks
    assert chunk.trie.size == 4
    assert chunk.wanted[3].tolist() == [8, 9]
    assert chunk.documents == range(4)


def test_chunks_cover_every_target_under_every_document() -> None:
    rng = random.Random(4)
    targets = [tuple(random_tokens(rng.randint(1, 300), rng)) for _ in range(40)]
    job = plan_scores(targets, 7, 2, 512)
    seen = [(target, document) for chunk in job.chunks for target in chunk.targets for document in chunk.documents]
    assert sorted(seen) == [(target, document) for target in range(40) for document in range(7)]
    assert all(chunk.trie.size <= MAX_NODES for chunk in job.chunks if len(chunk.targets) > 1)
    assert all(chunk.trie.size * len(chunk.documents) <= 512 for chunk in job.chunks)
    assert any(len(chunk.targets) > 1 for chunk in job.chunks)


def test_a_trie_sees_only_ancestors() -> None:
    trie = build_trie([(1, 2, 3), (1, 2, 4), (), (1,)])
    assert trie.tokens.tolist() == [1, 2, 3, 4]
    assert trie.depths.tolist() == [0, 1, 2, 2]
    assert trie.visible.astype(int).tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 0, 1]]
    assert [path.tolist() for path in trie.paths] == [[0, 1, 2], [0, 1, 3], [], [0]]


def test_groups_are_as_large_as_fit() -> None:
    sequences = [(1, 2, 3), (1, 2, 4), (), (1,), (5,), (1, 2, 3, 4, 5, 6)]
    assert in_groups(sequences, 4) == [[0, 1, 2, 3], [4], [5]]
    assert in_groups(sequences, 100) == [[0, 1, 2, 3, 4, 5]]
    assert in_groups([], 4) == []


def test_many_long_targets_are_planned_in_linear_time() -> None:
    """Candidates of a search with 50 documents and 10 beams, and what nobody asks for: their nodes are walked once."""
    stem = tuple(range(4, 504))
    targets = [(*stem, *(5 + (i * 31 + j * 7) % 300 for j in range(500))) for i in range(512)]
    walked = [0]

    class Counted(tuple[int, ...]):
        def __iter__(self) -> Iterator[int]:
            walked[0] += len(self)
            return super().__iter__()

    groups = in_groups([Counted(target) for target in targets])
    assert len(groups) == 512
    assert walked[0] <= 3 * 1000 * 512
