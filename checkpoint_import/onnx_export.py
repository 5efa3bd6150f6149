"""Exports a torch model to ONNX and trusts the file only after comparing it with torch."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from ragserve.errors import FailedPreconditionError
from ragserve.files import file_error, is_about_access

TOLERANCE = 1e-4  # largest difference of any component of a vector
OPSET = 18
LONGEST = 2048  # tokens of the longest text that is compared


def export_checked(model: nn.Module, path: Path, *, vocab_size: int, max_length: int) -> int:
    """Write `model` (input_ids, attention_mask -> query_vector) and compare it with torch; returns the vector's width.

    The file is removed when it cannot be loaded or differs.

    Raises:
        FailedPreconditionError: the export failed, or ONNX Runtime's vectors are not torch's within `TOLERANCE`.
    """
    try:
        _export(model, path)
        dim = _compare(model, path, vocab_size, max_length)
    except FailedPreconditionError:
        path.unlink(missing_ok=True)
        raise
    except Exception as error:  # the exporter and ONNX Runtime raise bare exceptions of many kinds
        path.unlink(missing_ok=True)
        if is_about_access(error):
            raise file_error(error, "write", path) from error
        raise FailedPreconditionError(f"{path.name}: the ONNX export failed: {error}", field=path.name) from error
    return dim


def _export(model: nn.Module, path: Path) -> None:
    ids = torch.ones(2, 7, dtype=torch.int64)
    names = ("input_ids", "attention_mask")
    axes = {name: {0: "batch", 1: "seq"} for name in names}
    with warnings.catch_warnings(), torch.no_grad():
        # The graph-tracing exporter takes 0.2 s where the dynamo one takes 8 s, and its graph runs a fifth faster.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (ids, torch.ones_like(ids)),
            str(path),
            input_names=list(names),
            output_names=["query_vector"],
            dynamic_axes={**axes, "query_vector": {0: "batch"}},
            opset_version=OPSET,
            dynamo=False,
        )


def _compare(model: nn.Module, path: Path, vocab_size: int, max_length: int) -> int:
    """Run several batch shapes, padded rows among them, through torch and ONNX Runtime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    dim = 0
    for batch, seq in ((1, 1), (1, 5), (3, 9), (5, 2), (2, min(max_length, 64)), (1, min(max_length, LONGEST))):
        ids = torch.randint(0, vocab_size, (batch, seq), generator=generator)
        mask = _padding_mask(batch, seq)
        with torch.no_grad():
            expected = model(ids, mask).numpy()
        (found,) = session.run(["query_vector"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
        difference = float(np.abs(found - expected).max())
        if found.shape != expected.shape or not difference <= TOLERANCE:
            raise FailedPreconditionError(
                f"{path.name}: for {batch} inputs of {seq} tokens the exported graph differs from torch by "
                f"{difference:.2g} (allowed: {TOLERANCE:g})",
                field=path.name,
            )
        dim = int(expected.shape[1])
    return dim


def _padding_mask(batch: int, seq: int) -> Tensor:
    """[batch, seq]: each row after the first is shorter than the one before, and at least one token long."""
    lengths = [max(1, seq - row * seq // (2 * batch)) for row in range(batch)]
    return (torch.arange(seq)[None] < torch.tensor(lengths)[:, None]).to(torch.int64)
