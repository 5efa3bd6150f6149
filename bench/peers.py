"""The peer: `transformers`' RAG classes on the same weights and contexts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    BartForConditionalGeneration,
    DPRConfig,
    DPRQuestionEncoder,
    RagConfig,
    RagSequenceForGeneration,
    RagTokenForGeneration,
)

from bench.workload import Workload


class InParts(RagSequenceForGeneration):
    """RAG-sequence whose thorough decoding scores its candidates a few at a time.

    transformers scores all of them under all documents in one pass, whose logits alone are 10 GB for 50 candidates of
    20 tokens under 50 documents of BART.
    """

    rows = 0  # candidates times documents of one pass; 0 for all

    def forward(self, *positional: Any, **inputs: Any) -> Any:
        """As of the class, for candidates [n_candidates, n_tokens] as labels."""
        labels, n_docs = inputs.get("labels"), self.config.n_docs
        each = self.rows // n_docs
        if labels is None or not each or len(labels) <= each:
            return super().forward(*positional, **inputs)
        losses = []
        for start in range(0, len(labels), each):
            chosen, contexts = slice(start, start + each), slice(start * n_docs, (start + each) * n_docs)
            part = {name: inputs[name][contexts] for name in ("context_input_ids", "context_attention_mask")}
            part |= {name: inputs[name][chosen] for name in ("doc_scores", "labels")}
            losses.append(super().forward(**{**inputs, **part})["loss"])
        return {"loss": torch.cat(losses)}


class HuggingFace:
    """RAG-token and RAG-sequence around one generator, given contexts (so no retrieval is timed).

    `scored_rows`: how many candidates times documents RAG-sequence scores at once; 0 for all, as transformers does.
    """

    def __init__(
        self,
        model: Path,
        workload: Workload,
        *,
        threads: int,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        scored_rows: int = 0,
    ) -> None:
        torch.set_num_threads(threads)
        self._workload = workload
        self._device = device
        self._tokenizer = AutoTokenizer.from_pretrained(model / "generator")
        generator: Any = BartForConditionalGeneration.from_pretrained(model / "generator", dtype=dtype)
        encoder = DPRQuestionEncoder(
            DPRConfig(vocab_size=100, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
        )
        special = {name: getattr(generator.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = RagConfig.from_question_encoder_generator_configs(
            encoder.config,
            generator.config,
            n_docs=workload.n_docs,
            decoder_start_token_id=generator.config.decoder_start_token_id,
            **special,
        )
        parts: dict[str, Any] = {"config": config, "question_encoder": encoder, "generator": generator}
        self._models: dict[str, Any] = {
            "token": RagTokenForGeneration(**parts),
            "sequence": InParts(**parts),
        }
        self._models["sequence"].rows = scored_rows
        for built in self._models.values():
            built.eval().to(device, dtype)

    def generate(self, mode: str, beams: int, *, padded: bool) -> list[int]:
        """The generated tokens of the best answer, the start token not included."""
        output = self._output(mode, beams, questions=1, padded=padded)
        return [int(token) for token in output[0][1:]]

    def generate_batch(self, questions: int) -> int:
        """Answer so many questions greedily in one batch (RAG-Token); the number of answers."""
        return len(self._output("token", 1, questions=questions, padded=False))

    def _output(self, mode: str, beams: int, *, questions: int, padded: bool) -> torch.Tensor:
        size = self._workload.padded_tokens if padded else self._workload.document_tokens
        encoded = self._tokenizer(
            self._workload.contexts() * questions,
            return_tensors="pt",
            padding="max_length",
            max_length=size,
            truncation=True,
        )
        output: torch.Tensor = self._models[mode].generate(
            context_input_ids=encoded["input_ids"].to(self._device),
            context_attention_mask=encoded["attention_mask"].to(self._device),
            doc_scores=torch.tensor([self._workload.log_priors()] * questions, device=self._device),
            n_docs=self._workload.n_docs,
            num_beams=beams,
            max_length=self._workload.length,
            min_length=self._workload.length,
            do_sample=False,
        )
        return output
