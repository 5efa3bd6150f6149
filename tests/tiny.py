"""Tiny random models, passages and knowledge bases for tests: deterministic by seed, nothing fetched.

The weights are scaled so that the distributions are peaked: near-ties, on which two correct implementations may
differ, are rare, and the end token is really reached.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BartTokenizer,
    BertTokenizer,
    DPRConfig,
    DPRContextEncoder,
    DPRQuestionEncoder,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    RagConfig,
    RagSequenceForGeneration,
    RagTokenForGeneration,
    RagTokenizer,
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
)
from transformers.utils import logging as transformers_logging

from checkpoint_import import import_checkpoint

transformers_logging.disable_progress_bar()

FAMILIES = ("bart", "t5", "t5-gated")
KINDS = ("rag-token", "rag-sequence")

_WORDS = """
the a of in and is was to by for on with from at as it its first great river city king queen book war island
north south east west mountain lake sea ocean star planet moon sun music song band film actor writer poet
painter house tower bridge castle church school college team game player league cup year century capital
country france england germany italy spain japan china india brazil canada born died founded built won named
known large small old new red blue green white black long high deep iron gold silver water fire stone wood
""".split()  # noqa: SIM905


def tiny_text(n_words: int, rng: random.Random) -> str:
    """A sentence of random words; a few proper names and punctuation keep the tokenizers honest."""
    words = [rng.choice(_WORDS) for _ in range(n_words)]
    words = [word.capitalize() if rng.random() < 0.15 else word for word in words]
    words = [f"{word}," if rng.random() < 0.05 else word for word in words]
    return " ".join(words).capitalize() + "."


@cache
def _corpus() -> tuple[str, ...]:
    rng = random.Random(7)
    return tuple(tiny_text(12, rng) for _ in range(300)) + tuple(
        f"who was born in {year}?" for year in range(1950, 1980)
    )


@cache
def bart_tokenizer() -> PreTrainedTokenizerBase:
    """Byte-level BPE, 400 tokens, with the ids of BART's special tokens."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        _corpus(),
        trainers.BpeTrainer(
            vocab_size=399,
            special_tokens=special,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    trained = json.loads(raw.to_str())["model"]
    vocab = {**trained["vocab"], "<mask>": len(trained["vocab"])}
    merges = [tuple(merge) for merge in trained["merges"]]
    return BartTokenizer(vocab=vocab, merges=merges, model_max_length=256)


@cache
def t5_tokenizer() -> PreTrainedTokenizerBase:
    """Unigram with the ids of T5's special tokens; put together by hand, since its trainer is not deterministic."""
    special = ["<pad>", "</s>", "<unk>"]
    characters = sorted({character for text in _corpus() for character in text if character != " "})
    words = [f"▁{word}" for word in _WORDS[::2]] + [f"▁{word.capitalize()}" for word in _WORDS[::6]]
    parts = sorted({word[-3:] for word in _WORDS if len(word) > 4})
    pieces = [(piece, 0.0) for piece in special] + [("▁", -3.0)]
    pieces += [(word, -4.0 - 0.01 * rank) for rank, word in enumerate(words)]
    pieces += [(part, -6.0 - 0.01 * rank) for rank, part in enumerate(parts)]
    pieces += [(character, -8.0 - 0.01 * rank) for rank, character in enumerate(characters)]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=256)


@cache
def question_tokenizer() -> PreTrainedTokenizerBase:
    """WordPiece, lower-cased, with [CLS] and [SEP], as DPR and BERT use; put together by hand like T5's."""
    characters = sorted({character for text in _corpus() for character in text.lower() if character != " "})
    parts = sorted({word[-3:] for word in _WORDS if len(word) > 4})
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *_WORDS[::2]]
    pieces += [f"##{part}" for part in [*parts, *characters]]
    return BertTokenizer(vocab={piece: index for index, piece in enumerate(dict.fromkeys(pieces))}, model_max_length=64)


def generator_tokenizer(family: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a generator family, neither padding nor cutting, whatever a test asked of it before."""
    tokenizer: Any = bart_tokenizer() if family == "bart" else t5_tokenizer()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.backend_tokenizer.no_truncation()
    return tokenizer


# By the end of a matrix's name: what adds to the stream, what makes attention sharp; BERT's are the last two.
GAINS = (
    (("out_proj.weight", "fc2.weight", ".o.weight", ".wo.weight"), 2.0),
    (("q_proj.weight", "k_proj.weight", ".q.weight", ".k.weight"), 1.7),
    (("output.dense.weight",), 2.5),
    (("query.weight", "key.weight"), 3.0),
)


def _randomize(model: PreTrainedModel, seed: int) -> None:
    """Redraw every weight, so that the next token depends on the documents and on all tokens so far.

    Rows are centred (else the mean of the activations drowns the rest) and attention is a bit sharp (else it averages
    the documents away; much sharper, float32 itself errs by 1e-4).
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        with torch.no_grad():
            if parameter.dim() < 2:
                is_scale = name.endswith("weight")
                parameter.copy_(1 + 0.1 * noise if is_scale else 0.1 * noise)
            elif any(word in name for word in ("shared", "embed", "relative_attention_bias", "lm_head")):
                logits = name.endswith(("shared.weight", "lm_head.weight"))
                parameter.copy_(0.5 * noise if logits else noise)
            else:
                gain = next((gain for names, gain in GAINS if name.endswith(names)), 1.5)
                parameter.copy_(gain * (noise - noise.mean(1, keepdim=True)) / parameter.shape[1] ** 0.5)


def _bart(seed: int, tokenizer: PreTrainedTokenizerBase, overrides: dict[str, Any]) -> PreTrainedModel:
    config = BartConfig(
        **{
            "vocab_size": len(tokenizer),
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "max_position_embeddings": 512,
            "forced_eos_token_id": None,
            **overrides,
        }
    )
    model = BartForConditionalGeneration(config)
    _randomize(model, seed)
    with torch.no_grad():
        model.final_logits_bias[0, :260] = -8.0  # special tokens and single bytes, which make no readable text
        model.final_logits_bias[0, config.eos_token_id] = 5.0
    return model


def _t5(seed: int, tokenizer: PreTrainedTokenizerBase, gated: bool, overrides: dict[str, Any]) -> PreTrainedModel:
    config = T5Config(
        **{
            "vocab_size": len(tokenizer),
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_heads": 4,
            "relative_attention_num_buckets": 8,
            "relative_attention_max_distance": 20,
            "feed_forward_proj": "gated-gelu" if gated else "relu",
            "tie_word_embeddings": not gated,
            "decoder_start_token_id": 0,
            **overrides,
        }
    )
    model = T5ForConditionalGeneration(config)
    _randomize(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".q.weight"):
                parameter.mul_(config.d_kv**-0.5)  # T5 does not divide by it
        if gated:  # as in flan-t5, whose checkpoints carry an output matrix of their own
            model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.flip(0).clone())
        else:  # tied: small at the input, so that a token does not mostly predict itself, large at the end
            model.shared.weight.mul_(0.3)
            model.decoder.final_layer_norm.weight.mul_(16.0)
        for matrix in {model.lm_head.weight, model.shared.weight}:  # a composite ties what was not
            matrix[config.eos_token_id].mul_(3.0)
            matrix[config.pad_token_id].mul_(0.0)
    return model


def tiny_generator(family: str, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A BART or T5 of two layers, 32 wide; `overrides` go into its config."""
    tokenizer = generator_tokenizer(family)
    if family == "bart":
        return _bart(seed, tokenizer, overrides).eval()
    return _t5(seed, tokenizer, family == "t5-gated", overrides).eval()


def _dpr_config(overrides: dict[str, Any]) -> DPRConfig:
    return DPRConfig(
        **{
            "vocab_size": len(question_tokenizer()),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "max_position_embeddings": 64,
            **overrides,
        }
    )


def tiny_question_encoder(seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A DPR question encoder of two layers, 32 wide."""
    model = DPRQuestionEncoder(_dpr_config(overrides))
    _randomize(model, seed)
    return model.eval()


def tiny_context_encoder(seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A DPR context encoder of two layers, 32 wide."""
    model = DPRContextEncoder(_dpr_config(overrides))
    _randomize(model, seed)
    return model.eval()


def tiny_rag(family: str, kind: str, seed: int = 0, **rag_config: Any) -> PreTrainedModel:
    """A composite: `RagTokenForGeneration` or `RagSequenceForGeneration`, by `kind`; its tokenizers are apart."""
    encoder, generator = tiny_question_encoder(0), tiny_generator(family, seed)
    settings = {
        "n_docs": 3,
        "max_combined_length": 128,
        "retrieval_vector_size": 32,
        "bos_token_id": getattr(generator.config, "bos_token_id", None),
        "eos_token_id": generator.config.eos_token_id,
        "pad_token_id": generator.config.pad_token_id,
        "decoder_start_token_id": generator.config.decoder_start_token_id,
        **rag_config,
    }
    config = RagConfig.from_question_encoder_generator_configs(encoder.config, generator.config, **settings)
    chosen = RagTokenForGeneration if kind == "rag-token" else RagSequenceForGeneration
    return chosen(config=config, question_encoder=encoder, generator=generator).eval()


def save_composite(directory: Path, family: str, kind: str, seed: int = 0, **rag_config: Any) -> Path:
    """Write a composite and its tokenizers as `save_pretrained` of transformers does.

    Search settings (num_beams, ...) stand at the top level of config.json and there is no generation_config.json, as in
    the published checkpoints.
    """
    tiny_rag(family, kind, seed, **rag_config).save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    path = directory / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **rag_config}), encoding="utf-8")
    RagTokenizer(question_tokenizer(), generator_tokenizer(family)).save_pretrained(directory)
    return directory


def save_generator(directory: Path, family: str, seed: int = 0, **overrides: Any) -> Path:
    """Write a generator and its tokenizer as one Hugging Face directory."""
    tiny_generator(family, seed, **overrides).save_pretrained(directory)
    generator_tokenizer(family).save_pretrained(directory)
    return directory


def save_question_encoder(directory: Path, seed: int = 0, **overrides: Any) -> Path:
    """Write a DPR question encoder and its tokenizer as one Hugging Face directory."""
    tiny_question_encoder(seed, **overrides).save_pretrained(directory)
    question_tokenizer().save_pretrained(directory)
    return directory


@dataclass(frozen=True)
class TinyPassage:
    """A passage as `kb build` reads it."""

    id: str
    title: str
    text: str


def tiny_passages(n: int, seed: int = 0, *, max_words: int = 40) -> list[TinyPassage]:
    """Passages of unequal length."""
    rng = random.Random(seed)
    return [
        TinyPassage(
            str(index), tiny_text(rng.randint(1, 3), rng)[:-1].title(), tiny_text(rng.randint(5, max_words), rng)
        )
        for index in range(n)
    ]


def tiny_model_dir(directory: Path, family: str = "bart", kind: str = "rag-token", seed: int = 0, **rag: Any) -> Path:
    """A model directory, as the services load it; `rag` goes into the composite's configuration."""
    source = save_composite(directory / f"{family}-{kind}-{seed}-composite", family, kind, seed, **rag)
    out = directory / f"{family}-{kind}-{seed}"
    return import_checkpoint(source, out).directory


def tiny_kb(directory: Path, model: Path, n: int = 12, seed: int = 0) -> Path:
    """A knowledge base of tiny passages, embedded by a model's passage encoder; their metadata is their `number`."""
    source = directory / f"passages-{n}-{seed}.jsonl"
    rows = [{**asdict(passage), "number": number} for number, passage in enumerate(tiny_passages(n, seed))]
    source.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    out = directory / f"kb-{n}-{seed}"
    from retriever_svc.build import BuildOptions, build_knowledge_base  # noqa: PLC0415 - lance and faiss, which a GPU machine may lack

    build_knowledge_base(source, out, model, build=BuildOptions(split="none"))
    return out


def write_jsonl(path: Path, passages: Sequence[TinyPassage]) -> Path:
    """Write passages as JSON lines."""
    path.write_text("".join(json.dumps(asdict(passage)) + "\n" for passage in passages), encoding="utf-8")
    return path
