"""The reference: `transformers`' own RAG classes on given contexts, with their known defects stepped around.

- `max_new_tokens` is ignored by `RagTokenForGeneration`, so lengths are given as `max_length`.
- `RagSequenceForGeneration` rescores with the config's n_docs, so that is set for each call.
- Rescoring drops the `<s>` of every candidate only if all of them begin with it.
- Padding tokens count nothing in a probability, even generated ones, so cases ban them.
- RAG-sequence drops the mask of its contexts, so that shorter documents read padding, and fills T5's ended beams with
  end tokens, which rescoring then counts.
- A one-token T5 candidate is rescored without its prior, so cases ask for at least two tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, RagSequenceForGeneration, RagTokenForGeneration

Contexts = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Doc:
    """A document and its retrieval score (any real number: only differences count)."""

    title: str
    text: str
    score: float


@dataclass(frozen=True)
class Search:
    """Settings of one search, by their Hugging Face names."""

    num_beams: int = 1
    max_length: int = 12
    min_length: int = 0
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    bad_words_ids: tuple[tuple[int, ...], ...] = field(default=())

    def kwargs(self) -> dict[str, Any]:
        """As `generate` takes them; beam settings only with beams, as it warns about them otherwise."""
        beams = {"length_penalty": self.length_penalty, "early_stopping": self.early_stopping}
        return {
            "num_beams": self.num_beams,
            "max_length": self.max_length,
            "min_length": self.min_length,
            "no_repeat_ngram_size": self.no_repeat_ngram_size,
            "repetition_penalty": self.repetition_penalty,
            "do_sample": False,
            **(beams if self.num_beams > 1 else {}),
            **({"bad_words_ids": [list(words) for words in self.bad_words_ids]} if self.bad_words_ids else {}),
        }


@dataclass(frozen=True)
class Reference:
    """What transformers answers. `score` is what the search ranked by, `log_prob` is -NLL."""

    token_ids: tuple[int, ...]
    score: float
    log_prob: float


def context(title: str, text: str, question: str, prefix: str = "") -> str:
    """As `RagRetriever.postprocess_docs` writes it."""
    title = title.removeprefix('"').removesuffix('"')
    return (prefix + title + " / " + text + " // " + question).replace("  ", " ")


def contexts_of(ids: torch.Tensor, mask: torch.Tensor, scores: Sequence[float]) -> Contexts:
    """What `generate` takes: ids and mask `[n_docs, n_tokens]`, scores `[1, n_docs]`."""
    return {
        "context_input_ids": ids,
        "context_attention_mask": mask,
        "doc_scores": torch.tensor([list(scores)], dtype=torch.float32),
    }


def n_docs_of(contexts: Contexts) -> int:
    """Number of documents."""
    return contexts["doc_scores"].shape[1]


class Oracle:
    """Token and sequence models around the same generator weights."""

    def __init__(self, token: RagTokenForGeneration, sequence: RagSequenceForGeneration, tokenizer: Any) -> None:
        self.token, self.sequence = token, sequence
        self.tokenizer: PreTrainedTokenizerBase = tokenizer
        self.config = token.generator.config
        self.start: int = self.config.decoder_start_token_id
        self.eos: int = self.config.eos_token_id
        self.pad: int = self.config.pad_token_id
        if not hasattr(self.config, "bos_token_id"):  # T5: scoring reads it all the same
            sequence.config.generator.bos_token_id = None

    @classmethod
    def load(cls, composite: Path) -> Oracle:
        """From a composite that `save_pretrained` wrote; of either kind, as both have the same weights."""
        token = RagTokenForGeneration.from_pretrained(composite).eval()
        parts = {"question_encoder": token.question_encoder, "generator": token.generator}
        sequence = RagSequenceForGeneration(config=copy.deepcopy(token.config), **parts).eval()
        return cls(token, sequence, AutoTokenizer.from_pretrained(composite / "generator_tokenizer"))

    def contexts(self, question: str, docs: Sequence[Doc]) -> Contexts:
        """Contexts of all documents, padded to the longest and masked."""
        texts = [context(doc.title, doc.text, question) for doc in docs]
        encoded = self.tokenizer(texts, return_tensors="pt", padding=True)
        return contexts_of(encoded["input_ids"], encoded["attention_mask"], [doc.score for doc in docs])

    def trim(self, sequence: torch.Tensor) -> tuple[int, ...]:
        """The generated tokens: without the start token, up to and with the first end token."""
        ids = [int(i) for i in sequence[1:]]
        return tuple(ids[: ids.index(self.eos) + 1]) if self.eos in ids else tuple(ids)

    def generate_token(self, contexts: Contexts, search: Search) -> Reference:
        """`RagTokenForGeneration.generate`."""
        out = self.token.generate(
            **contexts,
            n_docs=n_docs_of(contexts),
            return_dict_in_generate=True,
            output_scores=True,
            **search.kwargs(),
        )
        ids = self.trim(out.sequences[0])
        if search.num_beams > 1:
            score = float(out.sequences_scores[0])
        else:
            score = float(sum(step[0, token] for step, token in zip(out.scores, ids, strict=False)))
        return Reference(ids, score, self.log_prob_token(contexts, ids))

    def generate_sequence(self, contexts: Contexts, search: Search) -> Reference:
        """`RagSequenceForGeneration.generate`: thorough decoding."""
        n_docs = n_docs_of(contexts)
        self.sequence.config.n_docs = n_docs
        with patch.object(self.sequence.generator, "generate", self._with_mask(contexts["context_attention_mask"])):
            best = self.sequence.generate(**contexts, n_docs=n_docs, **search.kwargs())
        ids = self.trim(best[0])
        log_prob = self.log_prob_sequence(contexts, ids)
        return Reference(ids, log_prob, log_prob)

    def _with_mask(self, mask: torch.Tensor) -> Callable[..., torch.Tensor]:
        """The generator's `generate`, reading the contexts with their mask and filling up with padding."""
        plain = self.sequence.generator.generate

        def generate(ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            found = plain(ids, **{**kwargs, "attention_mask": mask})
            ended = (found[:, 1:] == self.eos).cumsum(1)[:, :-1] > 0
            found[:, 2:][ended] = self.pad
            return found

        return generate

    def _labels(self, ids: Sequence[int]) -> torch.Tensor:
        return torch.tensor([[self.start, *ids]])

    @torch.no_grad()
    def log_prob_token(self, contexts: Contexts, ids: Sequence[int]) -> float:
        """-NLL of exactly these decoder outputs under RAG-token."""
        out = self.token(**contexts, labels=self._labels(ids), n_docs=n_docs_of(contexts))
        return -float(out.loss[0])

    @torch.no_grad()
    def log_prob_sequence(self, contexts: Contexts, ids: Sequence[int]) -> float:
        """-NLL under RAG-sequence; as in `generate`, without the score of a leading `<s>`."""
        out = self.sequence(**contexts, labels=self._labels(ids), n_docs=n_docs_of(contexts), exclude_bos_score=True)
        return -float(out.loss[0])
