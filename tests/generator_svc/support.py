"""Random models that are well conditioned, so that two correct implementations agree to 1e-4 on every logit."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import AutoConfig, BartConfig, BartForConditionalGeneration, PreTrainedModel, T5Config
from transformers import T5ForConditionalGeneration as T5Model

from generator_svc.budget import Capacity
from generator_svc.loading import FAMILIES
from generator_svc.models.base import DocumentState, Seq2SeqModel
from generator_svc.models.numerics import NUMERICS
from generator_svc.models.precision import Precision
from generator_svc.runner import Runner, StepRows
from generator_svc.scheduler import Scheduler
from generator_svc.sessions import Hypothesis, Session, Start
from generator_svc.weights import TensorFile, WeightMap

CPU = torch.device("cpu")
VOCAB = 120
BART = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 56,
    "max_position_embeddings": 128,
    "init_std": 0.3,
}
T5 = {
    "vocab_size": VOCAB,
    "d_model": 32,
    "d_kv": 12,
    "d_ff": 40,
    "num_layers": 2,
    "num_decoder_layers": 3,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
}
VARIANTS = {
    "bart": {},
    "bart-untied": {"tie_word_embeddings": False},
    "bart-scaled-relu": {"scale_embedding": True, "activation_function": "relu"},
    "bart-silu": {"activation_function": "silu"},
    "bart-tanh": {"activation_function": "tanh"},  # has no kernel
    "t5": {},
    "t5-not-scaled": {"tie_word_embeddings": False},
    "t5-own-head": {},
    "t5-gated": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "t5-gated-silu": {"feed_forward_proj": "gated-silu"},
    "t5-gated-16": {"feed_forward_proj": "gated-gelu", "d_kv": 16},  # all of it has kernels, as in flan-t5
}


def build(variant: str, seed: int = 0, **settings: object) -> PreTrainedModel:
    """`settings` of the configuration, over those of the variant."""
    torch.manual_seed(seed)
    overrides = {**VARIANTS[variant], **settings}
    if variant.startswith("bart"):
        model: PreTrainedModel = BartForConditionalGeneration(BartConfig(**{**BART, **overrides}))
        with torch.no_grad():
            model.final_logits_bias.normal_(0, 0.5)
            for name, parameter in model.named_parameters():
                if name.endswith("bias") or "norm" in name:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    else:
        model = T5Model(T5Config(**{**T5, **overrides}))
        if variant == "t5-own-head":
            model.lm_head.weight = torch.nn.Parameter(0.5 * torch.randn(VOCAB, 32))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "norm" in name or "relative" in name:
                    parameter.add_(0.3 * torch.randn_like(parameter))
    return model.eval()


def load(directory: Path, precision: Precision = "float32", device: torch.device = CPU) -> Seq2SeqModel:
    """Our model from what `save_pretrained` wrote."""
    config = AutoConfig.from_pretrained(str(directory))
    weights = WeightMap(TensorFile(directory / "model.safetensors"))
    return FAMILIES[config.model_type](config, weights, device, NUMERICS[precision])


def random_tokens(n: int, rng: random.Random, vocab: int = VOCAB) -> list[int]:
    return [rng.randrange(3, vocab) for _ in range(n)]


def reference_logits(model: PreTrainedModel, context: Sequence[int], inputs: Sequence[int]) -> np.ndarray:
    """Hugging Face's logits [n_inputs, vocab] of one document, teacher-forced."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([context]), decoder_input_ids=torch.tensor([inputs])).logits
    return logits[0].numpy()


class Chain:
    """One session driven straight on scheduler and runner, without threads; choices are (parent, token)."""

    def __init__(
        self, runner: Runner, contexts: Sequence[Sequence[int]], *, shared: bool, starts: Sequence[Start]
    ) -> None:
        self.runner = runner
        self.scheduler = Scheduler(Capacity())
        self.session = Session(tuple(map(tuple, contexts)), shared, tuple(starts))
        self.scheduler.admit(self.session, 0.0)
        runner.cache.grow(self.scheduler.slots.size)
        self.documents: list[DocumentState] = runner.encode(contexts).documents
        self.scheduler.encoded(self.session.documents)
        self.scheduler.started(self.session)
        if self.session.prefix_trees:
            trees = list(self.session.prefix_trees)
            while trees:
                del trees[: runner.prime(self.documents, trees, 64)]

    @property
    def hypotheses(self) -> list[Hypothesis]:
        return self.session.hypotheses

    def rows(self) -> StepRows:
        return StepRows(tuple(self.documents), tuple(self.session.hypotheses), self.session.shared)

    def step(self) -> np.ndarray:
        """Logits [n_docs, n_hypotheses, vocab]."""
        logits = self.runner.step([self.rows()])[0].numpy()
        self.scheduler.finished(self.session, 0.0)
        return logits

    def advance(self, choices: Sequence[tuple[int, int]]) -> np.ndarray:
        self.scheduler.advance(self.session, choices, 0.0)
        self.runner.cache.grow(self.scheduler.slots.size)
        return self.step()
