"""Builds knowledge bases: stages the source, embeds it shard by shard, and commits all of it at once or nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import lance

from ragserve.checkpoint import load_manifest
from ragserve.files import file_error, file_errors
from ragserve.printable import counted
from retriever_svc.build.files import sync
from retriever_svc.build.fingerprint import fingerprint
from retriever_svc.build.journal import Journal, open_journal
from retriever_svc.build.options import BuildOptions
from retriever_svc.build.ray_engine import write_shards_with_ray
from retriever_svc.build.shards import ShardPlan, write_shard
from retriever_svc.build.sources import check_source, read_rows
from retriever_svc.build.spool import Readable, readable
from retriever_svc.build.staged import load_staged
from retriever_svc.build.staging import Stager
from retriever_svc.build.target import Target, check_target
from retriever_svc.build.vectors import embedding_files
from retriever_svc.checksums import file_checks
from retriever_svc.encoder_config import load_encoder_config
from retriever_svc.knowledge import (
    DATASET_NAME,
    KnowledgeInfo,
    describe,
    passage_encoder_directory,
    passage_encoder_hash,
)
from retriever_svc.loading import RetrievalOptions
from retriever_svc.splitting import Cut

Precision = Literal["float32", "float16"]


@dataclass(frozen=True)
class Progress:
    """How many passages of the source are embedded."""

    done: int
    total: int


def build_knowledge_base(  # noqa: PLR0913
    source: Path,
    out: Path,
    model: Path,
    *,
    source_format: str | None = None,
    split_words: int | None = None,
    precision: Precision = "float32",
    replace: bool = False,
    progress: Callable[[Progress], None] | None = None,
    options: RetrievalOptions | None = None,
    build: BuildOptions | None = None,
) -> KnowledgeInfo:
    """Embed the passages of a source with a model's passage encoder and write them to the directory `out`.

    The whole source is checked before anything is embedded. A new knowledge base appears under its name only when it
    is complete; with `replace`, an existing one gets a new version, and the old versions stay readable. What a build
    that was killed had finished is in `.NAME.building` beside `out` (in `.building` of an empty directory), and the
    same build goes on from there. A pipe, or `-` for standard input, is copied to a temporary file first.

    Raises:
        InvalidInputError: the source is not there, a bad row or vector, a duplicate id, no rows, or options that do not
            go together.
        NotFoundError: the model is not there.
        FailedPreconditionError: `out` exists and may not be replaced, is not empty and no knowledge base, or is being
            built.
    """
    build = build or BuildOptions()
    build.check(split_words)
    target = check_target(out, source, replace)
    with readable(source, source_format, build.notify) as found:
        name = check_source(found.path, source_format)
        job = _Job(found, name, target, model, split_words, precision, build)
        return job.run(options or RetrievalOptions(), progress or (lambda _progress: None))


@dataclass(frozen=True)
class _Job:
    """One build, of a source that can be read twice."""

    found: Readable
    source_format: str
    target: Target
    model: Path
    split_words: int | None
    precision: Precision
    build: BuildOptions

    def run(self, options: RetrievalOptions, report: Callable[[Progress], None]) -> KnowledgeInfo:
        build, out = self.build, self.target.path
        embeddings = embedding_files(build.embeddings, build.allow_pickle) if build.embeddings else ()
        encoder = passage_encoder_hash(self.model, load_manifest(self.model))
        directory = passage_encoder_directory(self.model)
        cut = None if build.embeddings else build.splitting(self.split_words).cut(directory)
        dimension = load_encoder_config(directory / "encoder.json").dim
        source = self.found.path
        with file_errors("read", source):
            identity = fingerprint(
                source, self.source_format, embeddings, self.model, self.split_words, self.precision, build
            )
        with open_journal(out, self.target.building, identity) as journal:
            staged = load_staged(journal.staged, embeddings)
            if staged is None:
                pipe = self.found.pipe
                rows = read_rows(source, self.source_format, build.limits, build.reading, build.notify, pipe)
                staged = self._stager(journal, cut).stage(rows, embeddings, dimension)
            for note in staged.notes():
                build.notify(note)
            size = build.shard_size(staged.stored)
            plan = ShardPlan(journal, staged, self.model, options, dimension, self.precision, encoder, size)
            _write_shards(plan, build, report)
            _commit(plan, self.target)
        return describe(out)

    def _stager(self, journal: Journal, cut: Cut | None) -> Stager:
        """Reads a source into an empty directory of the journal."""
        _renew(journal.staged)
        build = self.build
        unused = build.why_no_column_vectors(self.split_words)
        return Stager(journal.staged, self.found.shown, cut, build.skip_bad_rows, build.limits, unused, build.notify)


def _renew(directory: Path) -> None:
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()


def _write_shards(plan: ShardPlan, build: BuildOptions, report: Callable[[Progress], None]) -> None:
    """Make the shards that are not finished yet."""
    counts = {shard: plan.journal.passages(shard) for shard in range(plan.shards)}
    left = [shard for shard, passages in counts.items() if passages is None]
    done, total = sum(passages or 0 for passages in counts.values()), plan.staged.passages
    plan.journal.remove_unfinished(left)
    if len(left) < plan.shards:
        finished = f"{plan.shards - len(left)} of {counted(plan.shards, 'shard')}"
        build.notify(
            f"going on with an earlier build, which finished {finished} ({done:,} of {counted(total, 'passage')})"
        )
    report(Progress(done, total))
    if build.engine == "ray" and left:
        for passages in write_shards_with_ray(plan, left, build.workers):
            done += passages
            report(Progress(done, total))
    elif left:
        embedder = plan.embedder()
        for shard in left:
            done += write_shard(plan, shard, embedder, _adding_to(done, total, report))
    truncated = plan.journal.truncated(plan.shards)
    if truncated.count:
        build.notify(truncated.sentence())


def _adding_to(done: int, total: int, report: Callable[[Progress], None]) -> Callable[[int], None]:
    """Reports what is done of one shard after all that was done before."""
    return lambda now: report(Progress(done + now, total))


def _commit(plan: ShardPlan, out: Target) -> None:
    """Make the finished shards one version of the knowledge base, which a reader sees whole or not at all."""
    journal = plan.journal
    journal.remove_unfinished()
    overwrite = lance.LanceOperation.Overwrite(plan.schema, journal.fragments(plan.shards))
    target = out.path / DATASET_NAME if out.is_replaced else journal.dataset
    if out.is_replaced:
        _share(journal.dataset / "data", target / "data")
    try:
        committed = lance.LanceDataset.commit(str(target), overwrite, enable_stable_row_ids=True)
    except OSError as error:
        raise file_error(error, "write", target) from error
    file_checks(target.parent).record(committed)
    if not out.is_replaced:
        out.take(journal)


def _share(source: Path, target: Path) -> None:
    """Put data files, which have unique names, beside those of other versions; nothing reads them before the commit."""
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        shared = target / path.name
        if shared.exists() and shared.stat().st_size == path.stat().st_size:
            continue  # by an earlier build that was killed here
        shared.unlink(missing_ok=True)
        try:
            os.link(path, shared)
        except OSError:  # other file system, or one without links
            shutil.copyfile(path, shared)
            sync(shared)
    sync(target)
