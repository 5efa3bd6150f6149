"""Says what a Hugging Face directory holds, and which part of a RAG model it can be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ragserve.checkpoint import MANIFEST_NAME
from ragserve.errors import FailedPreconditionError, NotFoundError
from ragserve.files import exists, file_errors, parse_json, require_file

Role = Literal["rag", "encoder", "generator"]

GENERATORS = ("bart", "t5")
ENCODERS_OF_PAIRS = ("t5", "mt5", "umt5")  # encoder-decoders whose encoder alone makes sentence-transformers' vectors
RAG_MODELS = ("rag", "rag-token", "rag-sequence")  # model_type; the latter two in some old files
# Names for messages, where they are not the model_type itself.
NAMES = {
    **{"bart": "BART", "mbart": "mBART", "t5": "T5", "mt5": "mT5", "umt5": "UMT5", "led": "LED", "marian": "MarianMT"},
    **{"pegasus": "Pegasus", "gpt2": "GPT-2", "llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3", "bert": "BERT"},
    **{"roberta": "RoBERTa", "xlm-roberta": "XLM-RoBERTa", "mpnet": "MPNet", "distilbert": "DistilBERT", "dpr": "DPR"},
    **{"mistral": "Mistral", "gemma": "Gemma", "gemma2": "Gemma 2", "gemma3_text": "Gemma 3", "phi3": "Phi-3"},
    **{"nomic_bert": "Nomic BERT", "modernbert": "ModernBERT", "longt5": "LongT5", "m2m_100": "M2M100"},
}
ENCODER_DECODERS = frozenset(
    (
        *("bigbird_pegasus", "blenderbot", "blenderbot-small", "encoder-decoder", "fsmt", "led", "longt5"),
        *("m2m_100", "marian", "mbart", "mt5", "mvp", "nllb-moe", "pegasus", "pegasus_x", "plbart", "prophetnet"),
        *("switch_transformers", "t5gemma", "t5gemma2", "umt5"),
    )
)
DECODERS = frozenset(
    (
        *("bloom", "codegen", "cohere", "cohere2", "deepseek_v2", "deepseek_v3", "falcon", "gemma", "gemma2"),
        *("gemma3", "gemma3_text", "gpt2", "gpt_bigcode", "gpt_neo", "gpt_neox", "gpt_oss", "gptj", "granite"),
        *("llama", "llama4", "mamba", "mistral", "mixtral", "mpt", "olmo", "olmo2", "opt", "phi", "phi3"),
        *("qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "smollm3", "stablelm", "starcoder2"),
    )
)
CAUSAL_HEADS = ("ForCausalLM", "LMHeadModel")
# Heads of models that were trained for something else than generating text.
OTHER_HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering", "ForCausalLM")
SUPPORTED = (
    "ragserve serves RAG composites (model_type 'rag'), generators of model_type 'bart' (BART) and 't5' "
    "(T5, T5 1.1, FLAN-T5), and encoders of questions and passages (DPR, BERT and its relatives, "
    "sentence-transformers folders)"
)


@dataclass(frozen=True)
class Recognized:
    """What a directory holds.

    `role` is None for a model that ragserve does not serve; `label` names the model, and `kind` says what it is.
    """

    directory: Path
    config: dict[str, Any]
    role: Role | None
    label: str
    kind: str

    def __str__(self) -> str:
        return f"{self.directory} is recognized as {self.label}, {self.kind}"


def recognize(directory: Path) -> Recognized:
    """What a directory holds, by its files and by `model_type` and `architectures` of its config.json.

    Raises:
        NotFoundError: there is no directory, or no model in it that a configuration describes.
        FailedPreconditionError: the configuration cannot be read or names no model, or the weights are quantized.
    """
    if not exists(directory, Path.is_dir):
        raise _no_directory(directory)
    path = transformer_directory(directory) / "config.json"
    if not exists(path, Path.is_file):
        with file_errors("read", directory):
            raise _no_config(directory, path)
    config = read_json(path)
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or not model_type:
        heads = ", ".join(heads_of(config)) or "none"
        raise FailedPreconditionError(
            f"{path} names no model_type (architectures: {heads}), so nothing says which model this is: add it, as "
            f"transformers writes it. {SUPPORTED}",
            field=str(path),
        )
    if (method := quantization(config)) is not None:
        raise FailedPreconditionError(
            f"{path}: the weights are quantized with {method}, which cannot be imported: take the checkpoint in "
            "float32, float16 or bfloat16",
            field=str(path),
        )
    role, kind = _role(config, sentence_transformers=(directory / "modules.json").is_file())
    label = f"{NAMES[model_type]} (model_type {model_type!r})" if model_type in NAMES else f"model_type {model_type!r}"
    return Recognized(directory, config, role, label, kind)


def quantization(config: dict[str, Any]) -> str | None:
    """The method by which a checkpoint's weights are quantized; None: they are plain numbers."""
    found = config.get("quantization_config")
    return str(found.get("quant_method") or "an unnamed method") if isinstance(found, dict) else None


def _role(config: dict[str, Any], *, sentence_transformers: bool) -> tuple[Role | None, str]:
    model_type, heads = config["model_type"], heads_of(config)
    other_head = next((head for head in heads if head.endswith(OTHER_HEADS)), None)
    found: tuple[Role | None, str]
    if model_type in RAG_MODELS:
        found = "rag", "a RAG composite"
    elif sentence_transformers and (model_type in ENCODERS_OF_PAIRS or not _is_encoder_decoder(config)):
        found = "encoder", "an encoder of texts in a sentence-transformers folder"
    elif model_type in GENERATORS and heads and all(head.endswith("EncoderModel") for head in heads):
        found = "encoder", "the encoder half of a generator, used as an encoder of texts"
    elif model_type in GENERATORS and other_head is not None and not sentence_transformers:
        found = None, f"trained as {other_head}, which does not generate answers from passages"
    elif _is_encoder_decoder(config):
        served = model_type in GENERATORS and not sentence_transformers
        found = (
            ("generator", "a generator") if served else (None, "an encoder-decoder model that ragserve does not serve")
        )
    elif model_type in DECODERS or any(head.endswith(CAUSAL_HEADS) for head in heads):
        found = None, "a decoder-only language model, which cannot attend to each passage as RAG's generator does"
    else:
        found = "encoder", "an encoder of texts"
    return found


def heads_of(config: dict[str, Any]) -> list[str]:
    """The names in a configuration's `architectures`; none where it is no list."""
    found = config.get("architectures")
    return [str(head) for head in found] if isinstance(found, list) else []


def _is_encoder_decoder(config: dict[str, Any]) -> bool:
    return config["model_type"] in (*GENERATORS, *ENCODER_DECODERS) or bool(config.get("is_encoder_decoder"))


def _no_directory(path: Path) -> NotFoundError:
    if not path.exists():
        return NotFoundError(f"{path} is not a directory: nothing is there", field=str(path))
    what = "a file"
    if path.suffix == ".gguf":
        what = "a GGUF file, the format of llama.cpp"
    return NotFoundError(
        f"{path} is not a directory but {what}: name the folder of a Hugging Face checkpoint, which holds config.json, "
        f"the weights as safetensors, and a tokenizer. {SUPPORTED}",
        field=str(path),
    )


def _no_config(directory: Path, path: Path) -> NotFoundError:
    """The error for a directory without config.json, which says what is there instead."""
    names = sorted(entry.name for entry in directory.iterdir())
    inner = _inner(directory)
    if (directory / "adapter_config.json").is_file():
        base = read_json(directory / "adapter_config.json").get("base_model_name_or_path") or "its base model"
        advice = (
            f"it holds only an adapter of {base} (adapter_config.json): merge it into that model, and save the whole"
        )
    elif MANIFEST_NAME in names:
        advice = f"it is a model directory of ragserve already ({MANIFEST_NAME}): serve it with 'ragserve up --model'"
    elif any(name.endswith(".gguf") for name in names):
        advice = "it holds GGUF files, the format of llama.cpp: take the checkpoint that they were made from"
    elif inner:
        advice = f"it may be in {' or '.join(inner)} below it: name that folder"
    elif not names:
        advice = "the folder is empty"
    else:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        advice = f"the folder holds {', '.join(names[:5])}{more}: download the whole checkpoint"
    return NotFoundError(f"{path} is missing: {advice}. {SUPPORTED}", field=str(path))


def _inner(directory: Path) -> list[str]:
    """Folders inside that hold a config.json, such as the snapshots of Hugging Face's cache."""
    found: Iterable[Path] = (*directory.glob("*/config.json"), *directory.glob("snapshots/*/config.json"))
    return sorted(str(path.parent.relative_to(directory)) for path in found)[:3]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        NotFoundError: the file is missing.
        FailedPreconditionError: it holds something else.
    """
    require_file(path, "is this a Hugging Face checkpoint?")
    body = _load_json(path)
    if not isinstance(body, dict):
        raise FailedPreconditionError(f"{path} does not hold a JSON object", field=str(path))
    return body


def read_list(path: Path) -> list[dict[str, Any]]:
    """A JSON list of objects from a file.

    Raises:
        FailedPreconditionError: it holds something else.
    """
    body = _load_json(path)
    if not isinstance(body, list) or not all(isinstance(entry, dict) for entry in body):
        raise FailedPreconditionError(f"{path} does not hold a list of modules", field=str(path))
    return body


def _load_json(path: Path) -> Any:
    try:
        with file_errors("read", path):
            return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise FailedPreconditionError(f"{path} is not JSON: {error}", field=str(path)) from error


def transformer_directory(directory: Path) -> Path:
    """Where the transformer's config.json is: sentence-transformers may keep it in a folder of its own."""
    if (directory / "modules.json").is_file():
        modules = read_list(directory / "modules.json")
        return directory / str(modules[0].get("path", "")) if modules else directory
    return directory
