"""Tiny random RAG models in this process: as a distribution for our search, and as transformers' own `generate`."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from orchestrator.marginal import log_normalize
from orchestrator.options import Resolved
from orchestrator.requests import GeneratorInfo, Mode
from orchestrator.search.beam import EarlyStopping
from tests import tiny
from tests.orchestrator.driving import generator_info
from tests.orchestrator.toy import PrunedSession

EARLY_STOPPING = {EarlyStopping.HEURISTIC: False, EarlyStopping.FIRST: True, EarlyStopping.NEVER: "never"}


@cache
def model_of(family: str, kind: str, seed: int) -> PreTrainedModel:
    model = tiny.tiny_rag(family, kind, seed)
    if family != "bart":
        model.config.generator.bos_token_id = None  # scoring reads it all the same
    return model


@dataclass
class Case:
    """Documents around one question, and the models that read them."""

    family: str
    n_docs: int
    seed: int
    _known: dict[Any, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = random.Random(self.seed)
        tokenizer = tiny.generator_tokenizer(self.family)
        texts = [f"{p.title} / {p.text} // who is it" for p in tiny.tiny_passages(self.n_docs, self.seed)]
        encoded = tokenizer(texts, return_tensors="pt", padding=True)
        self.scores = [rng.uniform(-2, 2) for _ in texts]
        self.inputs = {
            "context_input_ids": encoded["input_ids"],
            "context_attention_mask": encoded["attention_mask"],
            "doc_scores": torch.tensor([self.scores]),
        }
        self.model = model_of(self.family, "rag-token", 0).generator
        self.config = self.model.config
        self.log_prior = log_normalize(self.scores)

    @property
    def info(self) -> GeneratorInfo:
        return generator_info(
            self.config.vocab_size,
            decoder_start_token_id=self.config.decoder_start_token_id,
            eos_token_id=(self.config.eos_token_id,),
            bos_token_id=getattr(self.config, "bos_token_id", None),
        )

    def session(self, mode: Mode) -> PrunedSession:
        sequence = mode is Mode.SEQUENCE
        return PrunedSession(self.distribution, self.log_prior, sequence_mode=sequence, normalizer=self.normalizer)

    def distribution(self, document: int, tokens: tuple[int, ...]) -> np.ndarray:
        """Log-probabilities of the next token, `[vocab]`."""
        return self.logits(tokens)[document].log_softmax(-1).numpy()

    def normalizer(self, document: int, tokens: tuple[int, ...]) -> float:
        """What the logits are above them."""
        return float(self.logits(tokens)[document].logsumexp(-1))

    @torch.no_grad()
    def logits(self, tokens: tuple[int, ...]) -> torch.Tensor:
        """Logits `[n_docs, vocab]` after a full recomputation, without cache."""
        if tokens not in self._known:
            masks = self.inputs["context_attention_mask"]
            if "encoder" not in self._known:
                encoder = self.model.get_encoder()
                self._known["encoder"] = encoder(input_ids=self.inputs["context_input_ids"], attention_mask=masks)
            start = torch.tensor([[self.config.decoder_start_token_id, *tokens]])
            out = self.model(
                encoder_outputs=self._known["encoder"],
                attention_mask=masks,
                decoder_input_ids=start.expand(self.n_docs, -1),
            )
            self._known[tokens] = out.logits[:, -1]
        return self._known[tokens]

    def kwargs(self, options: Resolved) -> dict[str, Any]:
        beams = {
            "length_penalty": options.length_penalty,
            "early_stopping": EARLY_STOPPING[options.early_stopping],
        }
        return {
            "num_beams": options.num_beams,
            "max_length": options.max_length,
            "min_length": options.min_length,
            "no_repeat_ngram_size": options.no_repeat_ngram_size,
            "repetition_penalty": options.repetition_penalty,
            "do_sample": False,
            **({"bad_words_ids": [list(one) for one in options.bad_words]} if options.bad_words else {}),
            **(beams if options.num_beams > 1 else {}),
        }

    def trim(self, sequence: Sequence[int]) -> tuple[int, ...]:
        ids = [int(i) for i in sequence][1:]
        eos = self.config.eos_token_id
        return tuple(ids[: ids.index(eos) + 1] if eos in ids else ids)

    def generate_token(self, options: Resolved, **extra: Any) -> list[tuple[tuple[int, ...], float]]:
        """Sequences and what ranked them, of `RagTokenForGeneration.generate`."""
        model = model_of(self.family, "rag-token", 0)
        out = model.generate(
            **self.inputs,
            n_docs=self.n_docs,
            num_return_sequences=options.num_beams,
            return_dict_in_generate=True,
            output_scores=True,
            **{**self.kwargs(options), **extra},
        )
        sequences = [self.trim(one) for one in out.sequences]
        if options.num_beams > 1:
            return list(zip(sequences, out.sequences_scores.tolist(), strict=True))
        steps = zip(out.scores, sequences[0], strict=False)
        return [(sequences[0], float(sum(step[0, token] for step, token in steps)))]

    def generate_sequence(self, options: Resolved, **extra: Any) -> tuple[int, ...]:
        """The answer of `RagSequenceForGeneration.generate`, which is helped around two defects of its 5.23.

        It drops the mask of its contexts, so that shorter documents read padding; and where padding is token 0 (T5),
        beams are filled up with end tokens, which rescoring then counts.
        """
        model = model_of(self.family, "rag-sequence", 0)
        model.config.n_docs = self.n_docs
        plain = model.generator.generate

        def helped(ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            kwargs["attention_mask"] = self.inputs["context_attention_mask"]
            found = plain(ids, **kwargs)
            ended = (found[:, 1:] == self.config.eos_token_id).cumsum(1)[:, :-1] > 0
            found[:, 2:][ended] = self.config.pad_token_id
            return found

        model.generator.generate = helped
        try:
            found = model.generate(**self.inputs, n_docs=self.n_docs, **{**self.kwargs(options), **extra})
            return self.trim(found[0])
        finally:
            del model.generator.generate

    @torch.no_grad()
    def log_prob(self, mode: Mode, tokens: Sequence[int]) -> float:
        """-NLL of transformers."""
        model = model_of(self.family, f"rag-{mode.value}", 0)
        labels = torch.tensor([[self.config.decoder_start_token_id, *tokens]])
        extra = {"exclude_bos_score": True} if mode is Mode.SEQUENCE else {}
        return -float(model(**self.inputs, labels=labels, n_docs=self.n_docs, **extra).loss[0])
