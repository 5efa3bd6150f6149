"""Real services as processes on tiny models, and what is said to them."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
from prometheus_client.parser import text_string_to_metric_families

from bench.processes import ServiceProcess, start
from checkpoint_import import ImportOptions, import_checkpoint
from ragserve.v1 import common_pb2, generator_pb2, orchestrator_pb2, orchestrator_pb2_grpc
from retriever_svc.build import build_knowledge_base
from tests import tiny
from tests.retriever_svc.sources import WHOLE
from tests.system.cases import FAMILIES, Case
from tests.system.oracle import Doc, Search

SCORE_SCALE = 0.8  # not 1, so that leaving it out shows
N_PASSAGES = 60
MAX_CONTEXT_TOKENS = 256
TIMEOUT_SECONDS = 60.0
TOKEN, SEQUENCE = common_pb2.MODE_TOKEN, common_pb2.MODE_SEQUENCE
EARLY_STOPPING = {
    False: orchestrator_pb2.EARLY_STOPPING_HEURISTIC,
    True: orchestrator_pb2.EARLY_STOPPING_FIRST,
    "never": orchestrator_pb2.EARLY_STOPPING_NEVER,
}


@dataclass(frozen=True)
class Assets:
    """Model directories by family, and a knowledge base that fits all of them."""

    models: Mapping[str, Path]
    composites: Mapping[str, Path]
    knowledge: Path

    @classmethod
    def build(cls, directory: Path) -> Assets:
        """Composites as transformers saves them, imported; passages embedded by their query encoder."""
        kinds = dict(zip(FAMILIES, tiny.KINDS, strict=True))
        composites = {
            family: tiny.save_composite(
                directory / f"hf-{family}", family, kind, max_combined_length=MAX_CONTEXT_TOKENS
            )
            for family, kind in kinds.items()
        }
        models = {family: directory / f"model-{family}" for family in FAMILIES}
        for family, model in models.items():
            import_checkpoint(composites[family], model, ImportOptions(score_scale=SCORE_SCALE))
        source = tiny.write_jsonl(directory / "passages.jsonl", passages())
        build_knowledge_base(source, directory / "kb", models[FAMILIES[0]], build=WHOLE)
        return cls(models, composites, directory / "kb")


def passages() -> list[tiny.TinyPassage]:
    """What the knowledge base holds."""
    return tiny.tiny_passages(N_PASSAGES, seed=3)


@dataclass(frozen=True)
class Launcher:
    """Starts services on the assets; nothing is waited for."""

    assets: Assets
    logs: Path

    def retriever(self, **flags: object) -> ServiceProcess:
        """The retriever; flags as `server__grace_seconds=1`."""
        paths = {"model": self.assets.models[FAMILIES[0]], "knowledge": self.assets.knowledge, "threads": 1}
        return self._start("retriever_svc", paths, flags)

    def generator(self, family: str = FAMILIES[0], **flags: object) -> ServiceProcess:
        """A generator of a family."""
        return self._start("generator_svc", {"model": self.assets.models[family], "threads": 1}, flags)

    def orchestrator(self, retriever: str, generators: Sequence[str], **flags: object) -> ServiceProcess:
        """An orchestrator in front of a retriever and of one generator or several."""
        return self._start("orchestrator", {"retriever": retriever, "generator": f"ipv4:{','.join(generators)}"}, flags)

    def _start(self, module: str, paths: Mapping[str, object], flags: Mapping[str, object]) -> ServiceProcess:
        named = {name.replace("__", "."): value for name, value in flags.items()}
        return start(module, {**paths, **named}, self.logs)


@dataclass(frozen=True)
class Stack:
    """One retriever; a generator and an orchestrator for each family."""

    retriever: ServiceProcess
    generators: Mapping[str, ServiceProcess]
    orchestrators: Mapping[str, ServiceProcess]
    stubs: Mapping[str, orchestrator_pb2_grpc.RagServiceStub]

    def generate(self, family: str, request: orchestrator_pb2.GenerateRequest) -> orchestrator_pb2.GenerateResponse:
        """Ask the orchestrator of a family."""
        return self.stubs[family].Generate(request, timeout=TIMEOUT_SECONDS)

    def all(self) -> list[ServiceProcess]:
        """Every process."""
        return [self.retriever, *self.generators.values(), *self.orchestrators.values()]


def stub_of(target: str) -> orchestrator_pb2_grpc.RagServiceStub:
    """A client of an orchestrator."""
    return orchestrator_pb2_grpc.RagServiceStub(grpc.insecure_channel(target))


def options_of(search: Search, mode: int) -> orchestrator_pb2.GenerationOptions:
    """The same search in our terms."""
    bad_words = [common_sequence(words) for words in search.bad_words_ids]
    return orchestrator_pb2.GenerationOptions(
        mode=mode,
        num_beams=search.num_beams,
        max_length=search.max_length,
        min_length=search.min_length,
        length_penalty=search.length_penalty,
        early_stopping=EARLY_STOPPING[search.early_stopping],
        no_repeat_ngram_size=search.no_repeat_ngram_size,
        repetition_penalty=search.repetition_penalty,
        bad_words=bad_words,
        bad_words_set=True,
    )


def common_sequence(token_ids: Sequence[int]) -> generator_pb2.TokenSequence:
    """A message of token ids."""
    return generator_pb2.TokenSequence(token_ids=token_ids)


def documents_of(docs: Sequence[Doc]) -> list[generator_pb2.Document]:
    """Documents for a request; the service normalizes their priors."""
    return [generator_pb2.Document(title=doc.title, text=doc.text, log_prior=doc.score) for doc in docs]


def request_of(case: Case, mode: int, **fields: Any) -> orchestrator_pb2.GenerateRequest:
    """The request of a case."""
    return orchestrator_pb2.GenerateRequest(
        question=case.question,
        n_docs=None if case.docs else case.n_docs,
        documents=documents_of(case.docs),
        options=options_of(case.search, mode),
        **fields,
    )


def read_docs(case: Case, response: Any) -> tuple[Doc, ...]:
    """The documents that an answer rests on, with their scores as the softmax of the prior takes them."""
    if case.docs:
        return case.docs
    found = [(answer.passage, answer.score * SCORE_SCALE) for answer in response.passages]
    return tuple(Doc(passage.title, passage.text, score) for passage, score in found)


def scrape(process: ServiceProcess) -> dict[str, float]:
    """Samples of the metrics port by `name{label=value,...}`, labels sorted."""
    with urllib.request.urlopen(f"http://127.0.0.1:{process.metrics_port}/metrics", timeout=10) as page:
        text = page.read().decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {_key(sample.name, sample.labels): sample.value for sample in samples}


def _key(name: str, labels: Mapping[str, str]) -> str:
    inside = ",".join(f"{label}={value}" for label, value in sorted(labels.items()))
    return f"{name}{{{inside}}}" if inside else name


def greedy(case: Case, max_length: int) -> Case:
    """The case with a plain greedy search of exactly `max_length`."""
    return replace(case, search=Search(max_length=max_length, min_length=max_length))
