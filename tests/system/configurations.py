"""Checkpoints of many configurations: written, read by transformers, and imported and served in this process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import torch
from transformers import (
    AutoTokenizer,
    RagConfig,
    RagSequenceForGeneration,
    RagTokenForGeneration,
    RagTokenizer,
)

from generator_svc.engine import GeneratorEngine
from generator_svc.options import EngineOptions
from generator_svc.servicer import GeneratorServicer
from orchestrator.deadline import Deadline
from orchestrator.downstream.clients import Downstream
from orchestrator.pipeline import Pipeline
from orchestrator.requests import Answer, Document, GenerateAsk, GenerationOptions, Mode, Sources
from orchestrator.settings import OrchestratorSettings
from ragserve.serving.metrics import Metrics
from ragserve.v1 import generator_pb2_grpc
from tests import tiny
from tests.system.oracle import Contexts, context, contexts_of

QUESTION = "who built the old tower of france?"
SCORES = (1.1, 0.3, -0.4)
N_DOCS = len(SCORES)
PAD = {"bart": 1, "t5": 0, "t5-gated": 0}
LENGTH = {"max_length": 10}
SEEDS = {"bart": 9, "t5": 10, "t5-gated": 6}  # plain answers have some tokens, all different
Edit = Callable[[Sequence[int]], Mapping[str, Any]]  # from the tokens of the plain answer


def nothing(_: Sequence[int]) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Configuration:
    """A composite: `top` and `section` go into config.json, `own` is generation_config.json where it is not None.

    `model` are values of the generator's configuration that shape it.
    """

    name: str
    family: str = "bart"
    kind: str = "rag-token"
    model: Mapping[str, Any] = field(default_factory=dict)
    top: Edit = nothing
    section: Edit = nothing
    own: Edit | None = None
    changes: bool = False  # the answer differs from the plain one

    def __str__(self) -> str:
        return f"{self.family}-{self.kind.removeprefix('rag-')}-{self.name}"

    def write(self, directory: Path, plain: Sequence[int]) -> Path:
        """As `save_pretrained`, then edited."""
        save(directory, self.family, self.kind, self.model)
        path = directory / "config.json"
        config = json.loads(path.read_text(encoding="utf-8"))
        config.update({"bad_words_ids": [[PAD[self.family]]], **LENGTH, **self.top(plain)})
        config["generator"].update(self.section(plain))
        path.write_text(json.dumps(config), encoding="utf-8")
        own = directory / "generation_config.json"
        own.unlink(missing_ok=True)
        if self.own is not None:
            settings = {"bad_words_ids": [[PAD[self.family]]], **LENGTH, **self.own(plain)}
            own.write_text(json.dumps(settings), encoding="utf-8")
        return directory


def save(directory: Path, family: str, kind: str, model: Mapping[str, Any]) -> None:
    """A composite and its tokenizers."""
    encoder, generator = tiny.tiny_question_encoder(0), tiny.tiny_generator(family, SEEDS[family], **model)
    if family == "bart":
        generator.final_logits_bias[0, generator.config.eos_token_id] = 1.0  # answers of some tokens
    special = ("bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id")
    config = RagConfig.from_question_encoder_generator_configs(
        encoder.config,
        generator.config,
        n_docs=N_DOCS,
        max_combined_length=128,
        retrieval_vector_size=32,
        **{name: getattr(generator.config, name, None) for name in special},
    )
    chosen = RagTokenForGeneration if kind == "rag-token" else RagSequenceForGeneration
    chosen(config=config, question_encoder=encoder, generator=generator).save_pretrained(directory)
    RagTokenizer(tiny.question_tokenizer(), tiny.generator_tokenizer(family)).save_pretrained(directory)


def passages() -> list[tiny.TinyPassage]:
    return tiny.tiny_passages(N_DOCS, 5, max_words=15)


class HuggingFace:
    """What transformers answers with the settings of the checkpoint alone."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._token = RagTokenForGeneration.from_pretrained(directory).eval()
        self.settings = self._token.generation_config
        self._tokenizer = AutoTokenizer.from_pretrained(directory / "generator_tokenizer")

    def _contexts(self) -> Contexts:
        prefix = getattr(self._token.generator.config, "prefix", None) or ""
        separators = self._token.config
        texts = [
            context(one.title, one.text, QUESTION, prefix)
            .replace(" / ", separators.title_sep, 1)
            .replace(" // ", separators.doc_sep, 1)
            for one in passages()
        ]
        encoded = self._tokenizer(texts, return_tensors="pt", padding=True)
        return contexts_of(encoded["input_ids"], encoded["attention_mask"], SCORES)

    def token(self, **extra: Any) -> tuple[int, ...]:
        """`RagTokenForGeneration.generate`."""
        found = self._token.generate(**self._contexts(), n_docs=N_DOCS, **extra)[0]
        return trimmed(found, self.settings.eos_token_id)

    def sequence(self, **extra: Any) -> tuple[int, ...]:
        """`RagSequenceForGeneration.generate`, which is helped around defects of its 5.23 as in `oracle`.

        It reads search settings from nowhere, so they are given: those of the composite.
        """
        model = RagSequenceForGeneration.from_pretrained(self._directory).eval()
        model.config.n_docs = N_DOCS
        if not hasattr(model.config.generator, "bos_token_id"):
            model.config.generator.bos_token_id = None
        contexts, eos = self._contexts(), model.generator.generation_config.eos_token_id
        plain = model.generator.generate

        def helped(ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
            found = plain(ids, **{**kwargs, "attention_mask": contexts["context_attention_mask"]})
            ended = torch.isin(found[:, 1:], torch.tensor(eos)).cumsum(1)[:, :-1] > 0
            found[:, 2:][ended] = model.config.generator.pad_token_id
            return found

        model.generator.generate = helped
        names = ("num_beams", "max_length", "min_length", "length_penalty", "bad_words_ids", "no_repeat_ngram_size")
        given = {name: getattr(self.settings, name) for name in names}
        given = {name: value for name, value in given.items() if value is not None}
        found = model.generate(**contexts, n_docs=N_DOCS, **{**given, **extra})[0]
        return trimmed(found, eos)


def trimmed(sequence: torch.Tensor, eos: int | list[int] | None) -> tuple[int, ...]:
    """The generated tokens up to and with the first end token."""
    ids, ends = [int(i) for i in sequence[1:]], {eos} if isinstance(eos, int) else set(eos or ())
    first = next((place for place, token in enumerate(ids) if token in ends), len(ids) - 1)
    return tuple(ids[: first + 1])


@dataclass(frozen=True)
class Served:
    """A generator with an orchestrator in front of it."""

    pipeline: Pipeline
    engine: GeneratorEngine

    async def answer(self, mode: Mode, **options: Any) -> Answer:
        """With the passages of the test, and the checkpoint's settings where no option is given."""
        documents = tuple(Document(one.title, one.text, score) for one, score in zip(passages(), SCORES, strict=True))
        asked = GenerationOptions(mode=mode, **options)
        ask = GenerateAsk(Sources(QUESTION, documents=documents), asked)
        return await self.pipeline.generate(ask, Deadline.after(60.0))


@asynccontextmanager
async def serving(model: Path) -> AsyncIterator[Served]:
    """The real engine behind its real servicer, on a port of this machine."""
    engine = GeneratorEngine(model, EngineOptions(device="cpu", threads=1), Metrics())
    await engine.start()
    server = grpc.aio.server()
    generator_pb2_grpc.add_GeneratorServiceServicer_to_server(GeneratorServicer(engine), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    settings = OrchestratorSettings(generator=f"127.0.0.1:{port}")
    metrics = Metrics()
    downstream = Downstream(settings, metrics)
    try:
        yield Served(Pipeline(downstream.retriever, downstream.generator, settings, metrics), engine)
    finally:
        await downstream.stop()
        await server.stop(None)
        await engine.stop()
