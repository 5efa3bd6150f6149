"""Makes the demo's assets: `python -m training.demo_generator --out demo`.

Stages: fetch packages, export the encoder, embed the passages, find passages for the training questions, train the
generator (first as a reader, then with the RAG-Token loss), write it as int8. A stage whose result is there already
is skipped, so a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import torch

from training.assets import ENCODER, finish_manifest, knowledge_vectors, write_encoder, write_generator, write_knowledge
from training.batches import Texts
from training.checkpoints import phase_done
from training.cloze import cloze_examples
from training.corpus import Summary, load_summaries
from training.embed import question_vectors
from training.packages import Sources, fetch_sources
from training.progress import console, stage
from training.questions import TEST_SETS, TRAINING_SETS, load_questions, without_test_questions
from training.rows import (
    RagExample,
    ReaderExample,
    Row,
    Vectors,
    answerable_rows,
    rag_examples,
    reader_examples,
    split_rows,
)
from training.start import load_start, load_tokenizer
from training.trainer import Schedule, Trainer

HELD_OUT = 150  # questions of each development set that are not trained on, to choose models by
HELD_OUT_SETS = ("nq.dev", "trivia.dev")
CLOZE_SEED = 7


@dataclass(frozen=True)
class Examples:
    """What the two phases train on."""

    reader: list[ReaderExample]
    rag: list[RagExample]


def main(argv: list[str] | None = None) -> None:
    """Run all stages."""
    arguments = _arguments(argv)
    torch.set_num_threads(arguments.threads)
    out, cache = arguments.out, arguments.cache
    schedule = Schedule(reader_steps=arguments.reader_steps, rag_steps=arguments.rag_steps, seed=arguments.seed)
    with stage("fetch packages"):
        sources = fetch_sources(cache)
    corpus = load_summaries(sources.summaries)
    vectors = _retriever(sources, corpus, out)
    rows, _ = training_rows(sources, corpus, vectors, out / "model", cache)
    examples = make_examples(rows, corpus, schedule.seed)
    console.print(f"{len(examples.reader)} reader examples, {len(examples.rag)} questions with retrieved passages")
    tokenizer = load_tokenizer(sources.start)
    trainer = Trainer(load_start(sources.start), Texts(tokenizer, corpus), schedule)
    train(trainer, examples, cache / "checkpoints")
    with stage("write the generator"):
        write_generator(trainer.model, tokenizer, out / "model")
        finish_manifest(out / "model", trainer.scale)


def training_rows(
    sources: Sources, corpus: list[Summary], passages: Vectors, model: Path, cache: Path
) -> tuple[list[Row], list[Row]]:
    """Rows to train on, and rows held out of the same sets; none of them asks what a test set asks."""
    test = [question for name in TEST_SETS for question in load_questions(sources.questions, name)]
    train, held_out = [], []
    for name in TRAINING_SETS:
        questions = without_test_questions(load_questions(sources.questions, name), test)
        with stage(f"retrieve for {name}") as bar:
            vectors = question_vectors(model / ENCODER, questions, cache, bar.update)
            found = answerable_rows(questions, vectors, corpus, passages)
        kept, apart = split_rows(found, HELD_OUT if name in HELD_OUT_SETS else 0, seed=1)
        train += kept
        held_out += apart
    return train, held_out


def make_examples(rows: list[Row], corpus: list[Summary], seed: int) -> Examples:
    """Examples of both phases; a third of the reader's are cloze questions."""
    answered, cloze = reader_examples(rows, corpus), cloze_examples(corpus, CLOZE_SEED)
    drawn = random.Random(seed).sample(cloze, min(len(cloze), len(answered) // 2))  # noqa: S311
    return Examples(answered + drawn, rag_examples(rows, corpus))


def train(trainer: Trainer, examples: Examples, checkpoints: Path) -> None:
    """Both phases."""
    with stage("train as a reader") as bar:
        phase_done(checkpoints, "reader", trainer, lambda: trainer.train_reader(examples.reader, bar.step))
    with stage("train with the RAG-Token loss") as bar:
        phase_done(checkpoints, "rag-token", trainer, lambda: trainer.train_rag(examples.rag, bar.step))


def _retriever(sources: Sources, corpus: list[Summary], out: Path) -> Vectors:
    """Encoder and knowledge base, made where they are missing; the passage vectors."""
    model, knowledge = out / "model", out / "kb"
    with stage("export the encoder"):
        write_encoder(sources.encoder, model)
    if not knowledge.is_dir():
        with stage("embed the passages") as bar:
            write_knowledge(corpus, model, knowledge, lambda progress: bar.update(progress.done, progress.total))
    return knowledge_vectors(knowledge)


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    plan = Schedule()
    parser = argparse.ArgumentParser(prog="python -m training.demo_generator", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("demo"), help="where the assets go (default: demo)")
    parser.add_argument(
        "--cache",
        type=Path,
        default=Path(".cache/training"),
        help="packages, vectors, checkpoints (default: %(default)s)",
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    parser.add_argument("--reader-steps", type=int, default=plan.reader_steps, help="default: %(default)s")
    parser.add_argument("--rag-steps", type=int, default=plan.rag_steps, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=plan.seed, help="default: %(default)s")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
