"""A step as a function over static buffers: what a CUDA graph can hold, and what runs as well without one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from generator_svc.gpu.kernels import Kernels, Paths, Selected, Selection, Tiles
from generator_svc.gpu.layout import Bucket, Place, Writer
from generator_svc.kv_cache import KVCache
from generator_svc.models.base import DocumentState, PositionBias, Rows, Seq2SeqModel, Shape
from generator_svc.steps import StepTask


class SlotAttention:
    """Rows attend to their paths in the cache, through the kernels; see `SelfAttention`."""

    places: None = None

    def __init__(self, kernels: Kernels, cache: KVCache, shape: Shape, paths: Paths) -> None:
        self._kernels, self._cache, self._shape, self._paths = kernels, cache, shape, paths
        self._bias: torch.Tensor | None = None

    def start(self, position_bias: PositionBias | None) -> None:
        """See `SelfAttention`."""
        if position_bias is not None:
            distances = torch.arange(self._paths.table.shape[1], device=self._paths.table.device)
            self._bias = position_bias(distances).contiguous()

    def attend(self, layer: int, qkv: torch.Tensor) -> torch.Tensor:
        """See `SelfAttention`."""
        return self._kernels.own(qkv, self._cache.layers[layer], self._paths, self._bias, self._shape)


@dataclass(frozen=True)
class TiledDocuments:
    """Rows read the documents of their tiles, through the kernels; see `CrossAttention`."""

    places: ClassVar[None] = None
    kernels: Kernels
    shape: Shape
    tiles: Tiles

    def attend(self, layer: int, query: torch.Tensor) -> torch.Tensor:
        """See `CrossAttention`."""
        return self.kernels.documents(query, layer, self.tiles, self.shape)


@dataclass(frozen=True)
class Outcome:
    """What one pass gave, on the host: parts as `Selected` has them, and the requested log-probabilities."""

    ids: npt.NDArray[np.int32]  # [n_rows, M]
    log_probs: npt.NDArray[np.float32]  # [n_rows, M]
    log_norms: npt.NDArray[np.float32]  # [n_rows]
    mass: npt.NDArray[np.float32]  # [n_rows]
    requested: npt.NDArray[np.float32]


class StaticStep:
    """The buffers of one bucket, and the step over them. `write`, then `compute` (or its graph), then `read`."""

    def __init__(self, model: Seq2SeqModel, cache: KVCache, kernels: Kernels, bucket: Bucket) -> None:
        self._model, self._cache, self._kernels, self._bucket = model, cache, kernels, bucket
        self._input, self._host_input = _pair(sum(bucket.inputs().values()), torch.int64, cache.device)
        self._output, self._host_output = _pair(sum(bucket.outputs().values()), torch.int32, cache.device)
        self._arrays = _arrays(self._host_input, bucket.inputs())
        parts = dict(zip(bucket.inputs(), torch.split(self._input, list(bucket.inputs().values())), strict=True))
        self._tokens, self._lengths = parts["tokens"], parts["lengths"]
        self._requested_rows, self._requested_tokens = parts["requested_rows"], parts["requested_tokens"]
        self._paths = Paths(parts["table"].view(bucket.rows, bucket.longest), self._lengths)
        self._tiles = Tiles(*(parts[f"tile_{name}"] for name in ("addresses", "tokens", "firsts", "counts")))
        self._selection = Selection(
            **{name: parts[name] for name in ("strides", "counts", "banned_starts", "banned_counts", "banned")},
            log_priors=parts["log_priors"].view(torch.float32)[: bucket.rows],
        )
        self._selected, self._requested = self._outputs()

    def _outputs(self) -> tuple[Selected, torch.Tensor]:
        sizes = self._bucket.outputs()
        parts = dict(zip(sizes, torch.split(self._output, list(sizes.values())), strict=True))
        floats = {name: part.view(torch.float32) for name, part in parts.items() if name != "ids"}
        chosen = (self._bucket.rows, self._bucket.candidates)
        selected = Selected(
            parts["ids"].view(chosen), floats["log_probs"].view(chosen), floats["log_norms"], floats["mass"]
        )
        return selected, floats["requested"]

    def write(self, tasks: Sequence[StepTask]) -> tuple[list[Place], dict[int, DocumentState]]:
        """Fill the buffers; where each session is, and the documents by address."""
        writer = Writer(self._arrays, self._bucket.longest)
        places = [writer.add(task) for task in tasks]
        self._input.copy_(self._host_input, non_blocking=True)
        return places, writer.documents

    def compute(self) -> None:
        """The step itself: reads and writes nothing but the buffers, the cache and the documents."""
        model = self._model
        attention = SlotAttention(self._kernels, self._cache, model.shape, self._paths)
        documents = TiledDocuments(self._kernels, model.shape, self._tiles)
        positions = (self._lengths - 1).clamp_(min=0)
        logits = model.logits(model.decode(Rows(self._tokens, positions, documents), attention))
        self._kernels.select(logits, self._selection, self._selected)
        shown = logits[self._requested_rows, self._requested_tokens]
        self._requested.copy_(shown - self._selected.log_norms[self._requested_rows])

    def read(self) -> Outcome:
        """Wait for the step and take what it gave: the only wait, and the only copy to the host."""
        self._host_output.copy_(self._output, non_blocking=True)
        if self._output.is_cuda:
            torch.cuda.current_stream().synchronize()
        chosen = (self._bucket.rows, self._bucket.candidates)
        parts = _arrays(self._host_output.clone(), self._bucket.outputs())
        floats = {name: part.view(np.float32) for name, part in parts.items() if name != "ids"}
        ids = parts["ids"].view(np.int32).reshape(chosen)
        return Outcome(**{**floats, "log_probs": floats["log_probs"].reshape(chosen)}, ids=ids)


def _pair(size: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A buffer of zeros on the device, and one on the host to copy from or to."""
    host = torch.zeros(size, dtype=dtype, pin_memory=device.type == "cuda")
    return torch.zeros(size, dtype=dtype, device=device), host


def _arrays(flat: torch.Tensor, sizes: dict[str, int]) -> dict[str, npt.NDArray[Any]]:
    """Parts of a buffer on the host."""
    ends = np.cumsum(list(sizes.values()))[:-1]
    return dict(zip(sizes, np.split(flat.numpy(), ends), strict=True))
