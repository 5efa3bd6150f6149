"""One knowledge base with two versions of the world, and the services that answer from whichever is pinned."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import lance

from bench.hot_swap.corpus import DIRECTORY, VERSIONS, passages_file
from bench.processes import ROOT, running, start
from ragserve.client import Client
from ragserve.results import Answer
from retriever_svc.build import build_knowledge_base
from retriever_svc.knowledge import DATASET_NAME

MODEL, BASE = ROOT / "demo/model", ROOT / "demo/kb"
DOCS = 5
TIMEOUT_SECONDS = 600.0


@dataclass(frozen=True)
class World:
    """A knowledge base, and its version number for each version of the world."""

    knowledge: Path
    numbers: Mapping[str, int]


def make_world(directory: Path, offices: Path = DIRECTORY, base: Path | None = BASE) -> World:
    """The offices of 2015, then replaced by those of 2026; beside the demo's 10,033 Wikipedia summaries, or alone.

    offices: where the passages' files are; base: the knowledge base to add them to, None for a new one.
    """
    knowledge = directory / "kb"
    if base is not None:
        shutil.copytree(base, knowledge)
    return World(knowledge, {version: publish(knowledge, passages_file(version, offices)) for version in VERSIONS})


def publish(knowledge: Path, source: Path) -> int:
    """Embed passages and upsert them by id in one commit, which is the hot swap; the new version's number."""
    if not knowledge.exists():
        return build_knowledge_base(source, knowledge, MODEL, precision="float16").version
    with tempfile.TemporaryDirectory() as temporary:
        built = build_knowledge_base(source, Path(temporary) / "kb", MODEL, precision="float16").path
        rows = lance.dataset(str(built / DATASET_NAME)).to_table()
    dataset = lance.dataset(str(knowledge / DATASET_NAME))
    dataset.merge_insert("id").when_matched_update_all().when_not_matched_insert_all().execute(rows)
    return int(lance.dataset(str(knowledge / DATASET_NAME)).version)


class Pinned:
    """The running system; every question says which version of the world it is answered from."""

    def __init__(self, world: World, clients: Mapping[str, Client]) -> None:
        self._world = world
        self._clients = clients

    def ask(self, question: str, version: str, mode: str) -> Answer:
        """Greedy, five passages. mode: "token" or "sequence"."""
        number = self._world.numbers[version]
        return self._clients[version].generate(
            question,
            mode="sequence" if mode == "sequence" else "token",
            docs=DOCS,
            beams=1,
            knowledge_version=number,
        )


@contextmanager
def serving(world: World, logs: Path, *, threads: int = 2) -> Iterator[Pinned]:
    """A generator, and a retriever and an orchestrator for each version, as processes."""
    generator = start("generator_svc", {"model": MODEL}, logs, threads=threads)
    retrievers = {
        version: start(
            "retriever_svc", {"model": MODEL, "knowledge": world.knowledge, "knowledge-version": number}, logs
        )
        for version, number in world.numbers.items()
    }
    orchestrators = {
        version: start("orchestrator", {"retriever": retriever.target, "generator": generator.target}, logs)
        for version, retriever in retrievers.items()
    }
    with running(generator, *retrievers.values(), *orchestrators.values()), ExitStack() as stack:
        clients = {
            version: stack.enter_context(Client(process.target, timeout_seconds=TIMEOUT_SECONDS))
            for version, process in orchestrators.items()
        }
        yield Pinned(world, clients)
