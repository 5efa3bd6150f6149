"""What makes two builds the same: only then does one go on with what the other finished."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import lance

from ragserve.checkpoint import load_manifest, sha256_of, verify_files
from retriever_svc.build.files import digest_of
from retriever_svc.build.folders import files_in
from retriever_svc.build.formats.arrow import open_lance
from retriever_svc.build.options import BuildOptions
from retriever_svc.knowledge import ENCODER_FILES, passage_encoder_directory

JOURNAL_FORMAT = 4  # also counts rules by which shards are bounded


def fingerprint(
    source: Path,
    source_format: str,
    embeddings: tuple[Path, ...],
    model: Path,
    split_words: int | None,
    precision: str,
    build: BuildOptions,
) -> dict[str, Any]:
    """Contents of source, vectors and encoder, and every option that changes a row or the bounds of a shard.

    Raises:
        NotFoundError, DataLossError: the encoder's files are not those that the model's manifest lists.
    """
    return {
        "format": JOURNAL_FORMAT,
        "lance": lance.__version__,
        "source": _source(source, source_format),
        "source_format": source_format,
        "embeddings": digest_of((path.name, path) for path in embeddings),
        "encoder": _encoder(model),
        "split": list(astuple(build.splitting(split_words))),
        "precision": precision,
        "reading": asdict(build.reading),
        "skip_bad_rows": build.skip_bad_rows,
        "max_text_bytes": build.max_text_bytes,
        "max_passage_bytes": build.max_passage_bytes,
        "shard_passages": build.shard_passages,
    }


def _source(source: Path, source_format: str) -> str:
    if source_format == "lance":
        dataset = open_lance(source)
        fragments = "\n".join(str(fragment.metadata.to_json()) for fragment in dataset.get_fragments())
        return hashlib.sha256(f"{dataset.version} {fragments}".encode()).hexdigest()
    return digest_of(_files(source, source_format), unreadable=source_format == "folder")


def _files(source: Path, source_format: str) -> Iterator[tuple[str, Path]]:
    if source_format != "folder":
        yield source.name, source
        return
    for path in files_in(source).files:
        yield path.relative_to(source).as_posix(), path


def _encoder(model: Path) -> dict[str, str]:
    directory = passage_encoder_directory(model)
    verify_files(model, load_manifest(model), directory.name)
    return {name: sha256_of(directory / name) for name in ENCODER_FILES if (directory / name).is_file()}
