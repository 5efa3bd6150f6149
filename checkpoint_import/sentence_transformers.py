"""Reads a folder of sentence-transformers: every file in it that changes the vector of a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from torch import nn

from checkpoint_import.recognize import read_json, read_list, transformer_directory
from checkpoint_import.vector_model import POOLING_MODES, Head, PoolingMode
from checkpoint_import.weights import read_weights
from ragserve.errors import FailedPreconditionError

LIBRARY = "sentence_transformers."
ACTIVATIONS = {
    **{"Tanh": nn.Tanh, "Identity": nn.Identity, "ReLU": nn.ReLU, "GELU": nn.GELU, "SiLU": nn.SiLU},
    **{"Sigmoid": nn.Sigmoid, "LeakyReLU": nn.LeakyReLU, "ELU": nn.ELU},
}
POOLING_KEYS: dict[str, PoolingMode] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
# The names of the transformer's settings, the first that is there counts.
TRANSFORMER_SETTINGS = tuple(
    f"sentence_{name}_config.json"
    for name in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
# What a setting must be, where another value would change the vector in a way that is not supported. A key that is
# missing has the first value.
ONLY_VALUES: dict[str, tuple[Any, ...]] = {
    "transformer_task": ("feature-extraction",),
    "module_output_name": ("token_embeddings",),
    "query_length": (None,),
    "document_length": (None,),
    "query_expansion": (None,),
}
NO_EFFECT = ("unpad_inputs", "backend", "trust_remote_code", "torch_dtype", "dtype", "attn_implementation", "use_cache")
POOLING_KNOWN = ("pooling_mode", "include_prompt", "word_embedding_dimension", "embedding_dimension")
DENSE_KEYS = ("in_features", "out_features", "bias", "activation_function", "module_input_name", "module_output_name")
SENTENCE = "sentence_embedding"


@dataclass(frozen=True)
class SentenceFolder:
    """What a folder says. `tokenizer` is what its tokenizer is loaded with."""

    head: Head
    max_length: int | None = None
    lower_case: bool = False
    tokenizer: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def read_folder(directory: Path, *, allow_pickle: bool) -> SentenceFolder | None:
    """What a folder's modules and settings say; None: there is no modules.json.

    Raises:
        FailedPreconditionError: it says something that is not supported; the message names the file and the key.
    """
    if not (directory / "modules.json").is_file():
        return None
    transformer = transformer_directory(directory)
    path = next((transformer / name for name in TRANSFORMER_SETTINGS if (transformer / name).is_file()), None)
    settings = read_json(path) if path is not None else {}
    warnings = _check_transformer(path, settings) if path is not None else ()
    tokenizer = {**_object(path, settings, "tokenizer_args"), **_object(path, settings, "processor_kwargs")}
    tokenizer.pop("trust_remote_code", None)
    length = tokenizer.pop("model_max_length", None) or settings.get("max_seq_length")
    if length is not None and (not isinstance(length, int) or length < 1):
        raise FailedPreconditionError(f"{path}: max_seq_length is {length!r}; expected tokens", field=str(path))
    head, ignored = _read_head(directory, allow_pickle)
    return SentenceFolder(
        head=head,
        max_length=length,
        lower_case=bool(settings.get("do_lower_case")),
        tokenizer=tokenizer,
        warnings=(*warnings, *ignored),
    )


def _object(path: Path | None, settings: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The object under a key; empty where there is none."""
    found = settings.get(key) or {}
    if not isinstance(found, dict):
        raise FailedPreconditionError(f"{path}: {key} must be an object, not {found!r}", field=str(path))
    return found


def _check_transformer(path: Path, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """Refuses settings of the transformer that are not supported; warns of those that are not known."""
    for key, allowed in ONLY_VALUES.items():
        if settings.get(key, allowed[0]) not in allowed:
            raise _unsupported(path, key, settings[key])
    modalities = _object(path, settings, "modality_config")
    if "message" in modalities:
        raise _unsupported(path, "modality_config", "message")
    if _object(path, modalities, "text").get("method_output_name", "last_hidden_state") != "last_hidden_state":
        raise _unsupported(path, "modality_config", modalities["text"])
    for part in ("common", "text"):
        given = _object(path, _object(path, settings, "processing_kwargs"), part)
        if set(given) - {"padding", "return_tensors"}:
            raise _unsupported(path, f"processing_kwargs.{part}", given)
    known = {"max_seq_length", "do_lower_case", "tokenizer_args", "processor_kwargs", *NO_EFFECT, *ONLY_VALUES}
    known |= {"modality_config", "processing_kwargs"}
    unknown = sorted(set(settings) - known)
    for name in ("model_args", "model_kwargs", "config_args", "config_kwargs"):
        if name in unknown and not set(_object(path, settings, name)) - set(NO_EFFECT):
            unknown.remove(name)
    return tuple(_ignored(path, key) for key in unknown)


def _unsupported(path: Path, key: str, value: object) -> FailedPreconditionError:
    return FailedPreconditionError(
        f"{path}: {key} {value!r} changes the vectors in a way that is not supported", field=str(path)
    )


def _ignored(path: Path, key: str) -> str:
    return f"{path}: the key {key!r} is not known and is ignored; if it changes vectors, they will differ"


def _read_head(directory: Path, allow_pickle: bool) -> tuple[Head, tuple[str, ...]]:
    """Pooling, dense layers and normalization, in the order of `modules.json`, and what is ignored of them."""
    listing = directory / "modules.json"
    head, pooled, ignored = Head(), False, tuple[str, ...]()
    for place, module in enumerate(read_list(listing)):
        kind, path = str(module.get("type", "")), directory / str(module.get("path", ""))
        name = kind.rsplit(".", 1)[-1]
        if not kind.startswith(LIBRARY):
            raise FailedPreconditionError(
                f"{listing}: the module {kind!r} is code of the checkpoint's own, which is not run", field=str(listing)
            )
        if (place == 0 and name == "Transformer") or name == "Dropout":
            continue
        if name == "Pooling" and place == 1:
            pooled = True
            head, ignored = _pooling(path / "config.json", head)
        elif name == "Normalize" and pooled:
            _check_names(path / "config.json")
            head = replace(head, normalize=True)
        elif name == "Dense" and pooled and not head.normalize:
            head = replace(head, projections=(*head.projections, *_dense(path, allow_pickle)))
        else:
            raise FailedPreconditionError(
                f"{listing}: a module {name!r} in this place is not supported; "
                "known are Transformer, Pooling, Dense and a final Normalize",
                field=str(listing),
            )
    if not pooled:
        raise FailedPreconditionError(f"{listing} has no module Pooling after the Transformer", field=str(listing))
    return head, ignored


def _pooling(path: Path, head: Head) -> tuple[Head, tuple[str, ...]]:
    """The poolings of a Pooling module: `pooling_mode`, else each `pooling_mode_*` that is true, else the mean.

    Also says which keys are not known.
    """
    body = read_json(path)
    said = body.get("pooling_mode")
    if said is None:
        said = [key for key in body if key.startswith("pooling_mode_") and body[key]]
        said = [POOLING_KEYS.get(key, key.removeprefix("pooling_mode_")) for key in said] or ["mean"]
        said.sort(key=lambda mode: POOLING_MODES.index(mode) if mode in POOLING_MODES else -1)
    modes = [str(mode).lower() for mode in (said if isinstance(said, list) else [said])]
    if wrong := [mode for mode in modes if mode not in POOLING_MODES]:
        raise FailedPreconditionError(
            f"{path}: pooling by {', '.join(wrong)} is not supported, only by {', '.join(POOLING_MODES)}",
            field=str(path),
        )
    pooling = tuple(cast("PoolingMode", mode) for mode in modes)
    unknown = sorted(key for key in body if key not in POOLING_KNOWN and not key.startswith("pooling_mode_"))
    found = replace(head, pooling=pooling, include_prompt=bool(body.get("include_prompt", True)))
    return found, tuple(_ignored(path, key) for key in unknown)


def _dense(directory: Path, allow_pickle: bool) -> tuple[nn.Module, nn.Module]:
    path = directory / "config.json"
    body = read_json(path)
    _check_names(path)
    if unknown := sorted(key for key in body if key not in DENSE_KEYS and body[key]):
        raise _unsupported(path, unknown[0], body[unknown[0]])
    kind = str(body.get("activation_function", "torch.nn.modules.activation.Tanh"))
    activation = kind.rsplit(".", 1)[-1]
    if activation not in ACTIVATIONS or not kind.startswith("torch."):
        raise FailedPreconditionError(f"{path}: activation {kind!r} is not supported", field=str(path))
    weights = read_weights(directory, allow_pickle=allow_pickle)
    tensors, sizes = weights.below("linear.").tensors, (body.get("out_features"), body.get("in_features"))
    shape = tuple(tensors["weight"].shape) if "weight" in tensors else ()
    if shape != sizes:
        raise FailedPreconditionError(
            f"{weights.path} does not fit {path}: the shape of the weight is {shape}, not {sizes}",
            field=str(weights.path),
        )
    layer = nn.Linear(shape[1], shape[0], bias=bool(body.get("bias", True)))
    try:
        layer.load_state_dict(tensors)
    except RuntimeError as error:
        raise FailedPreconditionError(
            f"{weights.path} does not fit {path}: {error}", field=str(weights.path)
        ) from error
    return layer, ACTIVATIONS[activation]()


def _check_names(path: Path) -> None:
    """Refuses a module that reads or writes something else than the text's vector."""
    body = read_json(path) if path.is_file() else {}
    for key in ("module_input_name", "module_output_name"):
        if body.get(key) not in (None, SENTENCE):
            raise _unsupported(path, key, body[key])
