"""What every index takes from the source that it is built from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ragserve.errors import FailedPreconditionError
from retriever_svc.index.protocol import VectorSource
from retriever_svc.types import Float32

TRAINING_SEED = 0


def sample(source: VectorSource, n_wanted: int) -> Float32:
    """A fixed random sample of the vectors [n_wanted, dim], all of them when there are no more than wanted."""
    if source.size <= n_wanted:
        return source.vectors(np.arange(source.size))
    return source.vectors(np.sort(np.random.default_rng(TRAINING_SEED).choice(source.size, n_wanted, replace=False)))


def finite_blocks(source: VectorSource) -> Iterator[Float32]:
    """All vectors in order, as blocks [n_rows, dim].

    Raises:
        FailedPreconditionError: one of them is not finite.
    """
    for block in source.vector_blocks():
        if block.size and not (np.isfinite(block.min()) and np.isfinite(block.max())):  # neither makes a copy
            raise FailedPreconditionError(
                "the knowledge base holds a vector that is not finite: build it again", field="knowledge"
            )
        yield block
