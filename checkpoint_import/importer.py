"""Imports a checkpoint: exports its parts into a directory next to OUT, which becomes OUT when all went well."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoint_import.graphs import Precision, check_precisions
from checkpoint_import.recognize import heads_of
from checkpoint_import.settings import rag_settings
from checkpoint_import.source import Part, Source, open_source
from ragserve.arguments import check_range
from ragserve.checkpoint import KINDS, MANIFEST_NAME, Manifest, hash_files
from ragserve.errors import FailedPreconditionError, InvalidInputError, RagserveError
from ragserve.files import exists, file_errors, number_of
from ragserve.unfinished import unfinished

if TYPE_CHECKING:  # torch takes seconds to import
    from checkpoint_import.encoder import EncoderOptions
    from checkpoint_import.vector_model import PoolingMode

RUST_PANIC = "PanicException"
Progress = Callable[[str, int, int], None]  # what is being done, steps done, steps in all


@dataclass(frozen=True)
class ImportOptions:
    """How to import.

    `kind` is one of `ragserve.checkpoint.KINDS`, or None for what the checkpoint says (a pair of models is "pair").
    `question_encoder`, `generator` and `passage_encoder` name further directories. `pooling` and `normalize` say how
    an encoder that does not know makes its vector. `query_prompt` and `passage_prompt` are put before each question and
    each passage; None: what the encoder's own files say. `encoder_precisions` are further ones of the query encoder.
    """

    kind: str | None = None
    question_encoder: Path | None = None
    generator: Path | None = None
    passage_encoder: Path | None = None
    allow_pickle: bool = False
    score_scale: float = 1.0
    pooling: PoolingMode | None = None
    normalize: bool | None = None
    query_prompt: str | None = None
    passage_prompt: str | None = None
    encoder_precisions: tuple[Precision, ...] = ()


@dataclass(frozen=True)
class ImportedModel:
    """What was written, and what the user should know about it."""

    directory: Path
    manifest: Manifest
    warnings: tuple[str, ...]


def import_checkpoint(
    src: Path, out: Path, options: ImportOptions | None = None, *, progress: Progress | None = None
) -> ImportedModel:
    """Turn a Hugging Face RAG composite, or one half of a pair of models, into a model directory.

    Nothing is left at `out` when the import fails.

    Raises:
        InvalidInputError: `out` exists, or an option does not fit.
        NotFoundError: a file of the checkpoint is missing.
        FailedPreconditionError: it is not a checkpoint that can be served, or a pickle that is not allowed.
        DataLossError: a weight file is truncated.
        RagserveError: a file may not be read, or `out` not be written.
    """
    options, report = options or ImportOptions(), progress or (lambda *_: None)
    _check(out, options)
    with file_errors("read", src):
        source = open_source(
            src,
            question_encoder=options.question_encoder,
            generator=options.generator,
            passage_encoder=options.passage_encoder,
        )
    kind, warnings = _kind(source, options.kind)
    with file_errors("write", out), _appears_when_complete(out) as directory:
        manifest = _export(source, directory, kind, options, report)
    return ImportedModel(out, manifest, (*warnings, *manifest.warnings, *manifest.encoder_warnings))


def _export(source: Source, directory: Path, kind: str, options: ImportOptions, report: Progress) -> Manifest:
    """Writes the parts and the manifest."""
    # torch and transformers take seconds to import: wrong arguments are told before
    from checkpoint_import.encoder import export_encoder, is_dpr_context  # noqa: PLC0415
    from checkpoint_import.generation import read_generation  # noqa: PLC0415
    from checkpoint_import.generator import export_generator  # noqa: PLC0415
    from checkpoint_import.loading import quiet_transformers, read_config  # noqa: PLC0415
    from checkpoint_import.precision import convert  # noqa: PLC0415

    quiet_transformers()
    steps = 4 if source.passage_encoder else 3
    rag = rag_settings(source)
    with _unexpected(source.generator, "a generator"):
        generation = read_generation(source, read_config(source.generator))
    encoder = _encoder_options(options)
    report("query encoder", 0, steps)
    with _unexpected(source.encoder, "a query encoder"):
        queries = export_encoder(source.encoder, directory / "query_encoder", encoder)
        for precision in options.encoder_precisions:
            convert(directory / "query_encoder", precision)
    passages = queries
    if source.passage_encoder:
        report("passage encoder", 1, steps)
        pair = replace(encoder, passage_pair=is_dpr_context(source.passage_encoder))
        with _unexpected(source.passage_encoder, "a passage encoder"):
            passages = export_encoder(source.passage_encoder, directory / "passage_encoder", pair)
    report("generator", steps - 2, steps)
    out, settings = directory / "generator", generation.hugging_face()
    with _unexpected(source.generator, "a generator"):
        warnings = export_generator(source.generator, out, settings, allow_pickle=options.allow_pickle)
    report("checksums", steps - 1, steps)
    manifest = Manifest(
        kind=kind,
        rag=rag,
        score_scale=options.score_scale,
        query_prompt=queries.query_prompt,
        passage_prompt=passages.passage_prompt,
        generation=generation.search,
        files=hash_files(directory),
        tokens=generation.tokens.to_json(),
        warnings=(*generation.warnings, *warnings),
        encoder_warnings=tuple(dict.fromkeys((*queries.warnings, *passages.warnings))),
    )
    (directory / MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")
    report("done", steps, steps)
    return manifest


def _encoder_options(options: ImportOptions) -> EncoderOptions:
    from checkpoint_import.encoder import EncoderOptions  # noqa: PLC0415  (torch takes seconds to import)

    return EncoderOptions(
        options.pooling,
        options.normalize,
        allow_pickle=options.allow_pickle,
        query_prompt=options.query_prompt,
        passage_prompt=options.passage_prompt,
    )


@contextmanager
def _unexpected(part: Part, role: str) -> Iterator[None]:
    """Names the part in an error of transformers, torch or tokenizers that no reader of a checkpoint expects.

    Raises:
        FailedPreconditionError: in its place, with its reason.
    """
    try:
        yield
    except RagserveError:
        raise
    except BaseException as error:
        panic = type(error).__name__ == RUST_PANIC  # which is no Exception
        system = isinstance(error, MemoryError) or number_of(error) is not None
        if system or not (panic or isinstance(error, Exception)):
            raise
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
        raise FailedPreconditionError(
            f"{part.directory} (model_type {part.config.get('model_type')!r}) cannot be imported as {role}: "
            f"{type(error).__name__}: {reason}",
            field=str(part.directory),
        ) from error


def _check(out: Path, options: ImportOptions) -> None:
    if exists(out):
        raise InvalidInputError("out", f"{out} exists already: remove it or name another directory")
    if not exists(out.parent, Path.is_dir):
        raise InvalidInputError("out", f"{out.parent} is not a directory")
    if options.kind is not None and options.kind not in KINDS:
        raise InvalidInputError("kind", f"kind is {options.kind!r}; it must be one of {', '.join(KINDS)}")
    check_precisions(options.encoder_precisions)
    check_range("score_scale", options.score_scale, above=0, why="it multiplies the scores in p(z|x)")


def _kind(source: Source, asked: str | None) -> tuple[str, tuple[str, ...]]:
    """The kind to write, and a warning when it is not the one the checkpoint was trained as."""
    trained = source.trained_kind
    if source.composite is None:
        return asked or "pair", ()
    if trained is None and asked is None:
        names = ", ".join(heads_of(source.composite) or ["none"])
        raise InvalidInputError(
            "kind",
            f"the checkpoint does not say whether it is RAG-token or RAG-sequence (architectures: {names}): give it",
        )
    if asked is not None and trained is not None and asked != trained:
        return asked, (f"this checkpoint was trained as {trained}; imported as {asked} it may answer worse",)
    return str(asked or trained), ()


@contextmanager
def _appears_when_complete(out: Path) -> Iterator[Path]:
    """A directory next to `out` that becomes `out` when the block ends well, and is removed otherwise."""
    directory = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        with unfinished(directory):
            yield directory
            directory.chmod(0o755)
            directory.rename(out)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise
