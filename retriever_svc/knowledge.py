"""The knowledge base: a directory with a versioned Lance dataset of passages and their vectors."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.compute as pc

from ragserve.checkpoint import IMPORT_AGAIN, Manifest, sha256_of
from ragserve.errors import DataLossError, FailedPreconditionError, NotFoundError, UnavailableError
from ragserve.files import file_error, is_about_access, parse_json, require_file
from ragserve.reasons import reason_of
from retriever_svc.filters import MetadataColumns
from retriever_svc.manifests import (
    FOLDER,
    UNREADABLE,
    committed,
    file_of,
    is_missing,
    is_panic,
    opened,
    readable,
    removed,
)
from retriever_svc.rows import TEXT_COLUMNS, VECTOR_COLUMN, DiskRows, MemoryRows, Rows

DATASET_NAME = "passages.lance"
FORMAT_VERSION = "1"
FORMAT_KEY = b"ragserve.format_version"
ENCODER_KEY = b"ragserve.encoder"
DIMENSION_KEY = b"ragserve.dim"
ENCODER_FILES = ("model.onnx", "tokenizer.json", "encoder.json")
OF_QUESTIONS = ("query_prompt", "cleans_up")  # entries of encoder.json that change no passage's vector
COUNTED_ROWS = 100_000  # whose metadata is read for a description
NAMED_VERSIONS = 20  # in an error
AND_INPUTS = "+"  # between the hash of the graph and that of the others
AND_PROMPT = " prompt="  # before the prompt that passages were embedded with, where there is one
# Lance lets of two commits that insert the same key only the first one through, where it knows which column is the key.
PRIMARY_KEY = {"lance-schema:unenforced-primary-key": "true"}


@dataclass(frozen=True)
class KnowledgeInfo:
    """What `ragserve kb info` prints."""

    path: Path
    version: int
    versions: tuple[int, ...]  # every version that can still be read, oldest first
    created: str  # ISO 8601, when this version was committed
    passages: int
    dimension: int
    precision: str  # of the stored vectors: float16 or float32
    size_bytes: int  # of the data files of this version
    encoder: str  # see `passage_encoder_hash`


@dataclass(frozen=True)
class KnowledgeBase:
    """One version of a knowledge base, open for reading."""

    path: Path
    dataset: lance.LanceDataset
    version: int
    passages: int
    dimension: int
    encoder: str

    @classmethod
    def open(cls, path: Path, version: int = 0) -> KnowledgeBase:
        """Open a version; 0 is the newest.

        Raises:
            NotFoundError: no knowledge base there, or it has no such version.
            FailedPreconditionError: not a knowledge base of this format.
            DataLossError: the files of that version are damaged.
        """
        dataset = _open_dataset(path, version)
        with reading(path, int(dataset.version)):
            metadata = _check_schema(path, dataset.schema)
            return cls(
                path=path,
                dataset=dataset,
                version=int(dataset.version),
                passages=int(dataset.count_rows()),
                dimension=int(dataset.schema.field(VECTOR_COLUMN).type.list_size),
                encoder=metadata[ENCODER_KEY].decode(),
            )

    @property
    def content(self) -> str:
        """A text that is the same only for the same rows: dataset files, version and encoder."""
        fragments = "\n".join(str(fragment.metadata.to_json()) for fragment in self.dataset.get_fragments())
        return f"{self.version} {self.encoder} {hashlib.sha256(fragments.encode()).hexdigest()}"

    @property
    def size_bytes(self) -> int:
        """Size of the data files of this version, in bytes."""
        files = (file for fragment in self.dataset.get_fragments() for file in fragment.metadata.files)
        return sum(file.file_size_bytes or 0 for file in files)

    def require_servable(self, encoder: str) -> None:
        """Check that `encoder` (see `passage_encoder_hash`) made the vectors, and that rows can be followed.

        Raises:
            FailedPreconditionError: otherwise.
        """
        if not self.dataset.has_stable_row_ids:
            raise FailedPreconditionError(
                f"{self.path} was written without stable row ids: build it again with 'ragserve kb build'",
                field=str(self.path),
            )
        if (part := _other_part(self.encoder, encoder)) is not None:
            raise FailedPreconditionError(
                f"{self.path} was embedded by another passage encoder ({part}) than the model's: build it again with "
                "'ragserve kb build', or use its model",
                field=str(self.path),
            )

    def rows(self, max_memory_bytes: int) -> Rows:
        """The rows: in memory if this version's files are no larger than that, else read from disk when needed."""
        in_memory = self.size_bytes <= max_memory_bytes
        return MemoryRows.read(self.dataset) if in_memory else DiskRows(self.dataset)


@contextmanager
def reading(path: Path, *versions: int) -> Iterator[None]:
    """Raises DataLossError for what Lance says when files of a knowledge base are damaged or gone.

    Another RagserveError where the operating system does not let them be read.

    NotFoundError where one of the `versions` that are read is gone altogether: a compaction removed it meanwhile.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, OSError | ValueError) and not is_from_lance(error) and not is_panic(error):
            raise
        for version in versions if is_missing(error) else ():
            if removed(path / DATASET_NAME, version):
                raise no_version(path, version) from error
        if is_about_access(error):
            raise file_error(error, "read", path) from error
        raise DataLossError(f"{path} is damaged, build it again: {reason_of(error)}", field=str(path)) from error


def is_from_lance(error: BaseException) -> bool:
    """Whether a RuntimeError is Lance's, as over a corrupt manifest: other libraries raise that too."""
    return isinstance(error, RuntimeError) and "lance" in str(error).lower()


def describe(path: Path, version: int = 0) -> KnowledgeInfo:
    """What a knowledge base holds, without loading it. Raises as `KnowledgeBase.open`."""
    knowledge = KnowledgeBase.open(path, version)
    history = {each.version: each.created for each in readable(knowledge.dataset, path / DATASET_NAME)}
    return KnowledgeInfo(
        path=path,
        version=knowledge.version,
        versions=tuple(sorted(history)),
        created=history[knowledge.version].astimezone().isoformat(timespec="seconds"),
        passages=knowledge.passages,
        dimension=knowledge.dimension,
        precision={"halffloat": "float16", "float": "float32"}[str(_vector_type(knowledge.dataset.schema).value_type)],
        size_bytes=knowledge.size_bytes,
        encoder=knowledge.encoder,
    )


def metadata_keys(path: Path, version: int = 0) -> tuple[dict[str, int], dict[str, int]]:
    """How many of the first COUNTED_ROWS passages have a value that can be filtered, by key, the most frequent first.

    The second mapping counts lists and objects, which cannot be filtered.

    Raises as `KnowledgeBase.open`, and DataLossError where metadata is damaged.
    """
    knowledge = KnowledgeBase.open(path, version)
    with reading(path, knowledge.version):
        rows = knowledge.dataset.to_table(columns=["metadata"], limit=COUNTED_ROWS)
    columns = MetadataColumns(pc.fill_null(rows.column("metadata"), ""))
    keys, nested = (
        sorted(one.items(), key=lambda pair: (-pair[1], pair[0])) for one in (columns.keys(), columns.nested())
    )
    return dict(keys), dict(nested)


def passage_encoder_directory(model: Path) -> Path:
    """The encoder of a model's passages: its own where there is one, else the query encoder."""
    own = model / "passage_encoder"
    return own if own.is_dir() else model / "query_encoder"


def passage_encoder_hash(model: Path, manifest: Manifest) -> str:
    """What a knowledge base must carry to fit a model: SHA-256 of its passage encoder's graph, and of what feeds that.

    Raises:
        NotFoundError: a file is missing.
    """
    graph, *inputs = (_hash(model, manifest, name) for name in ENCODER_FILES)
    config = _encoder_config(passage_encoder_directory(model) / ENCODER_FILES[-1])
    removed = [config.pop(name, None) for name in OF_QUESTIONS]
    if any(removed):
        written = json.dumps(config, indent=2, ensure_ascii=False) + "\n"  # as the import writes it
        inputs[-1] = hashlib.sha256(written.encode()).hexdigest()
    prompt = config.get("passage_prompt", "")
    identity = f"{graph}{AND_INPUTS}{hashlib.sha256(' '.join(inputs).encode()).hexdigest()}"
    return f"{identity}{AND_PROMPT}{prompt}" if prompt else identity


def _encoder_config(path: Path) -> dict[str, Any]:
    """The content of `encoder.json`; empty where it cannot be read: whoever loads the encoder says why."""
    try:
        body = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


def _hash(model: Path, manifest: Manifest, name: str) -> str:
    file = passage_encoder_directory(model) / name
    listed = manifest.files.get(file.relative_to(model).as_posix())
    if listed:
        return listed
    require_file(file, IMPORT_AGAIN)
    return sha256_of(file)


def _other_part(stored: str, own: str) -> str | None:
    """What differs between two encoders, for a message; None: nothing. Older knowledge bases know the graph alone."""
    (stored, _, prompt), (own, _, own_prompt) = stored.partition(AND_PROMPT), own.partition(AND_PROMPT)
    (graph, _, inputs), (own_graph, _, own_inputs) = stored.partition(AND_INPUTS), own.partition(AND_INPUTS)
    if graph != own_graph:
        return f"model.onnx {graph[:12]}…, not {own_graph[:12]}…"
    if prompt != own_prompt:
        return f"the prompt {prompt!r} before passages, not {own_prompt!r}"
    return f"another {' or '.join(ENCODER_FILES[1:])}" if inputs and own_inputs and inputs != own_inputs else None


def schema(dimension: int, precision: str, encoder: str) -> pa.Schema:
    """The Arrow schema of a knowledge base."""
    value_type = pa.float16() if precision == "float16" else pa.float32()
    texts = {name: pa.field(name, pa.string(), nullable=False) for name in TEXT_COLUMNS}
    texts["id"] = texts["id"].with_metadata(PRIMARY_KEY)
    vector = pa.field(VECTOR_COLUMN, pa.list_(value_type, dimension), nullable=False)
    return pa.schema(
        [texts["id"], texts["title"], texts["text"], vector, texts["metadata"]],
        metadata={ENCODER_KEY: encoder, DIMENSION_KEY: str(dimension), FORMAT_KEY: FORMAT_VERSION},
    )


def newest_version(path: Path) -> int:
    """The newest version committed. Raises as `KnowledgeBase.open`."""
    return int(_open_dataset(path, 0).version)


def _open_dataset(path: Path, version: int) -> lance.LanceDataset:
    directory = path / DATASET_NAME
    if not _is_there(directory):
        raise NotFoundError(
            f"{path} is not a knowledge base (no {DATASET_NAME} in it): 'ragserve kb build' makes one", field=str(path)
        )
    try:
        dataset = _newest(directory)
    except UNREADABLE as error:
        if is_about_access(error):
            raise file_error(error, "read", directory) from error
        if committed(directory):
            raise _damaged(directory, "the newest version", error) from error
        raise FailedPreconditionError(f"{directory} cannot be opened: {reason_of(error)}", field=str(path)) from error
    if version in (0, dataset.version):
        return dataset
    if version < 0:
        raise no_version(path, version)
    try:
        return _numbered(directory, version)
    except UNREADABLE as error:
        if is_about_access(error):
            raise file_error(error, "read", directory) from error
        if version in committed(directory):
            raise _damaged(directory, f"version {version}", error) from error
        raise no_version(path, version) from error


def _is_there(directory: Path) -> bool:
    """Whether a dataset's directory is there. Its folders must be readable: Lance takes an unreadable one as empty."""
    try:
        if not directory.is_dir():
            return False
        for folder in (directory, directory / FOLDER):
            with suppress(FileNotFoundError):
                os.scandir(folder).close()
    except OSError as error:
        if is_about_access(error):
            raise file_error(error, "read", directory) from error
        raise UnavailableError(
            f"{directory} cannot be reached: {reason_of(error)}"
        ) from error  # as of a network file system
    return True


def _newest(directory: Path) -> lance.LanceDataset:
    """The newest version: again where another one came, and a compaction removed this one before it was read."""
    failed: list[int] | None = None
    while True:
        try:
            return _numbered(directory)
        except UNREADABLE:
            if (newest := committed(directory)[-1:]) == failed:
                raise
            failed = newest


def _numbered(directory: Path, version: int | None = None) -> lance.LanceDataset:
    """As `opened`. Raises OSError too where the manifest says that it is another version's."""
    dataset = opened(directory, version)
    found = int(dataset.version)
    if version not in (None, found) or not file_of(directory, found).exists():
        raise OSError(f"its manifest says that it is version {found}" if found else "its manifest is empty")
    return dataset


def no_version(path: Path, version: int) -> NotFoundError:
    """What is said of a version that is not there."""
    found = committed(path / DATASET_NAME)
    known = ", ".join(map(str, found)) if len(found) <= NAMED_VERSIONS else f"{found[0]} to {found[-1]}"
    return NotFoundError(f"{path} has no version {version}; it has {known}", field="knowledge_version")


def _damaged(directory: Path, what: str, error: Exception) -> DataLossError:
    advice = f"put its file in {directory / FOLDER} back from a copy, or build the knowledge base again"
    message = f"{directory}: {what} is damaged and cannot be opened ({reason_of(error)}): {advice}"
    return DataLossError(message, field=str(directory.parent))


def _check_schema(path: Path, found: pa.Schema) -> dict[bytes, bytes]:
    """The schema's metadata, once the schema is known to be a knowledge base's."""
    metadata: dict[bytes, bytes] = found.metadata or {}
    wanted = {*TEXT_COLUMNS, VECTOR_COLUMN}
    if (
        not wanted <= set(found.names)
        or ENCODER_KEY not in metadata
        or not pa.types.is_fixed_size_list(_vector_type(found))
    ):
        raise FailedPreconditionError(
            f"{path} is not a knowledge base: it must have the columns "
            f"{', '.join(sorted(wanted))} and name its encoder",
            field=str(path),
        )
    if metadata.get(FORMAT_KEY, b"").decode() != FORMAT_VERSION:
        raise FailedPreconditionError(
            f"{path} has format_version {metadata.get(FORMAT_KEY, b'none').decode()}; "
            f"this version of ragserve reads {FORMAT_VERSION}",
            field=str(path),
        )
    return metadata


def _vector_type(found: pa.Schema) -> pa.DataType:
    return found.field(VECTOR_COLUMN).type
