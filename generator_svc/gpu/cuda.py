"""The GPU's side of a step: the Triton kernels, and its capture as a CUDA graph. Loaded only where there is a GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from weakref import WeakSet

import torch

from generator_svc.gpu.kernels import Paths, Selected, Selection, Tiles
from generator_svc.gpu.triton_attention import document_attention, own_attention
from generator_svc.gpu.triton_selection import select_candidates
from generator_svc.models.base import DocumentState, Shape


class TritonKernels:
    """See `Kernels`."""

    def expect(self, documents: Mapping[int, DocumentState]) -> None:
        """See `Kernels`: the addresses are in the tiles."""

    def own(
        self, qkv: torch.Tensor, slots: torch.Tensor, paths: Paths, bias: torch.Tensor | None, shape: Shape
    ) -> torch.Tensor:
        """See `Kernels`."""
        return own_attention(qkv, slots, paths, bias, shape)

    def documents(self, query: torch.Tensor, layer: int, tiles: Tiles, shape: Shape) -> torch.Tensor:
        """See `Kernels`."""
        return document_attention(query, layer, tiles, shape)

    def select(self, logits: torch.Tensor, selection: Selection, selected: Selected) -> None:
        """See `Kernels`."""
        select_candidates(logits, selection, selected)


class GraphCapture:
    """Captures functions as CUDA graphs; all share one pool of memory, since they never run at the same time.

    Other threads may use the GPU meanwhile.
    """

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """The replay of a function that has run before."""
        if not self._graphs:  # a pool that its last graph has left does not open again: cuBLAS's workspace is in it
            self._pool = torch.cuda.graph_pool_handle()
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                function()
        except BaseException:
            torch.cuda.set_stream(stream)  # a capture that fails leaves its own stream the current one
            self._graphs.clear()  # and its pool open: the next one takes another
            raise
        self._graphs.add(graph)
        return graph.replay
