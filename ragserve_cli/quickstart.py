"""`ragserve quickstart PATH`: a knowledge base from your own documents, the three services on it, and a prompt."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ragserve.errors import FailedPreconditionError, InvalidInputError
from ragserve.files import file_error, file_errors, parse_json
from ragserve.printable import counted
from ragserve_cli import console, interrupts
from ragserve_cli.plan import Assets, demo_directory, plan
from ragserve_cli.prompt import prompting
from ragserve_cli.up import ask_command

if TYPE_CHECKING:
    from retriever_svc.build import BuildOptions

STATE_FILE = "quickstart.json"  # in the knowledge base: what it was built from
STATE_FORMAT = 1
UPKEEP = ("compact", "settings")  # operations that change no passages


@dataclass(frozen=True)
class Sources:
    """The documents of a quickstart, the knowledge base they go into, and the model that embeds them.

    source_format: None: by the names of the files. build: how to read; None: by default, with bad rows left out.
    """

    path: Path
    out: Path
    model: Path
    source_format: str | None = None
    build: BuildOptions | None = None

    @classmethod
    def of(
        cls,
        path: Path,
        out: Path | None,
        model: Path | None,
        source_format: str | None = None,
        build: BuildOptions | None = None,
    ) -> Sources:
        """Raises InvalidInputError for a path that is not there or not read, NotFoundError for a missing model."""
        from retriever_svc.build.folders import format_of, looked_for  # noqa: PLC0415  (slow to import)

        if not path.exists():
            raise InvalidInputError("PATH", f"{path} does not exist: name a file or a folder of documents")
        if not path.is_dir() and not path.is_file():
            raise InvalidInputError("PATH", f"{path} is neither a file nor a folder: use ragserve kb build")
        if not path.is_dir() and source_format is None and format_of(path.name) is None:
            kinds = f"{looked_for()}, or a folder; or say the format (--format)"
            raise InvalidInputError("PATH", f"{path} is not a kind of file that is read: {kinds}")
        path = path.resolve()
        found_out, found_model = (out or default_out(path)).absolute(), model or demo_directory() / "model"
        return cls(path, found_out, found_model, source_format, build)

    @property
    def options(self) -> BuildOptions:
        """What the build is asked for."""
        from retriever_svc.build import BuildOptions  # noqa: PLC0415  (slow to import)

        return self.build or BuildOptions(skip_bad_rows=True, notify=console.note)

    def state(self) -> dict[str, object]:
        """What the knowledge base depends on: paths, sizes and times of the documents, the encoder, and how to read."""
        from ragserve.checkpoint import load_manifest  # noqa: PLC0415  (slow to import)
        from retriever_svc.knowledge import passage_encoder_hash  # noqa: PLC0415  (slow to import)

        seen = hashlib.sha256()
        for file in _files(self.path):
            with file_errors("read", file):
                stat = file.stat()
            seen.update(f"{file}\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        by_default = replace(self, source_format=None, build=None)
        return {
            "format": STATE_FORMAT,
            "source": str(self.path),
            "files": seen.hexdigest(),
            "encoder": passage_encoder_hash(self.model, load_manifest(self.model)),
            **({} if self._reading() == by_default._reading() else {"reading": self._reading()}),
        }

    def _reading(self) -> str:
        return repr((self.source_format, self.options.reading, self.options.limits))


def quickstart(sources: Sources, assets: Assets, *, verbose: bool, logs: bool, timeout: float) -> None:
    """Build what has changed, start the services, and answer what is asked at the prompt or piped in."""
    build_if_changed(sources)
    launches = plan(assets, free_ports=True)
    with prompting(launches, verbose=verbose, logs=logs, timeout=timeout) as prompt:
        retriever = next(launch.target for launch in launches if launch.name == "retriever")
        api, asking = prompt.started.target, ask_command(prompt.started)
        console.note(f"The API is at {api} (try {asking}); the retriever, for upserts, is at {retriever}")
        console.note(f"To serve these documents again: {_up_command(sources)}")
        prompt.run()


def build_if_changed(sources: Sources) -> None:
    """Build the knowledge base, unless it was built from the same documents with the same encoder.

    Raises:
        FailedPreconditionError: the directory holds something that quickstart did not make.
        InvalidInputError: no document can be read.
    """
    from retriever_svc.build import build_knowledge_base  # noqa: PLC0415  (slow to import)

    state, known = sources.state(), _known_state(sources.out)
    if known is not None and {key: value for key, value in known.items() if key != "version"} == state:
        console.note(f"{sources.path} has not changed: using {sources.out}")
        return
    others = OtherWrites.since(sources.out, known.get("version")) if known else None
    told = interrupts.saying(lambda: interrupts.RESUMABLE)
    with told, _name_out(), console.progress_bar("embedding", unit="passages") as bar:
        made = build_knowledge_base(
            sources.path,
            sources.out,
            sources.model,
            source_format=sources.source_format,
            replace=known is not None,
            progress=lambda progress: bar.update(progress.done, progress.total),
            build=sources.options,
        )
    with file_errors("write", sources.out / STATE_FILE):
        (sources.out / STATE_FILE).write_text(json.dumps({**state, "version": made.version}), encoding="utf-8")
    console.note(f"{sources.out}: version {made.version}, {counted(made.passages, 'passage')}")
    if others:
        console.warn(others.sentence(sources.out))


@dataclass(frozen=True)
class OtherWrites:
    """Versions of a knowledge base that quickstart did not build, such as those of upserts through the API."""

    count: int
    first: int
    last: int

    @classmethod
    def since(cls, out: Path, built: object) -> OtherWrites | None:
        """Those after the version that quickstart built; None where there are none.

        `built` is None in a knowledge base of an older ragserve: then the last build counts.
        """
        from retriever_svc.live.history import list_versions  # noqa: PLC0415  (slow to import)

        found = list_versions(out)
        newest = found[-1].version
        if not isinstance(built, int):
            built = max((one.version for one in found if one.operation == "build"), default=newest)
        same_content = {one.version for one in found if one.operation in UPKEEP}
        others = [version for version in range(built + 1, newest + 1) if version not in same_content]
        return cls(len(others), others[0], newest) if others else None

    def sentence(self, out: Path) -> str:
        """What became of them."""
        one = self.count == 1
        between = f"versions {self.first} to {self.last}" if self.first != self.last else f"version {self.last}"
        kept = "is not in the new version; it stays" if one else "are not in the new version; they stay"
        return (
            f"{counted(self.count, 'change')} made since the last build ({between}) {kept} readable as version "
            f"{self.last} (ragserve kb rollback {out} {self.last})"
        )


@contextmanager
def _name_out() -> Iterator[None]:
    """Adds to an error about the knowledge base's directory the option that names another one."""
    try:
        yield
    except FailedPreconditionError as error:
        if error.field != "out":
            raise
        raise FailedPreconditionError(f"{error.message} (--out KB)", field="--out") from error


def default_out(path: Path) -> Path:
    """A directory for the knowledge base of a path: in XDG_DATA_HOME, named after the path.

    Raises:
        InvalidInputError: there is no home directory.
    """
    try:
        data = Path(os.environ.get("XDG_DATA_HOME") or Path("~/.local/share").expanduser())
    except RuntimeError as error:
        raise InvalidInputError("--out", "there is no home directory: name a directory with --out") from error
    digest = hashlib.sha256(os.fsencode(path)).hexdigest()[:8]
    return data / "ragserve" / f"{path.stem or 'root'}-{digest}"


def _known_state(out: Path) -> dict[str, object] | None:
    """What a knowledge base was built from; None where there is none yet."""
    from retriever_svc.build import is_free  # noqa: PLC0415  (slow to import)

    if is_free(out):
        try:
            out.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=out if out.exists() else out.parent):
                return None
        except OSError as error:
            refused = file_error(error, "write to", out.parent)
            raise type(refused)(f"{refused.message}, or name another place with --out", field="--out") from error
    try:
        found = parse_json((out / STATE_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = None
    if not isinstance(found, dict):
        raise FailedPreconditionError(
            f"{out} was not made by quickstart: name another directory with --out, or serve it with "
            f"'ragserve up --knowledge {out}'",
            field="--out",
        )
    return found


def _files(path: Path) -> list[Path]:
    """The files that are read, in one order; of a Lance dataset or a knowledge base all files."""
    from retriever_svc.build.folders import files_in  # noqa: PLC0415  (slow to import)
    from retriever_svc.build.sources import is_lance  # noqa: PLC0415  (slow to import)

    if not path.is_dir():
        return [path]
    if is_lance(path):
        return sorted(Path(folder) / name for folder, _, names in os.walk(path) for name in names)
    return files_in(path).files


def _up_command(sources: Sources) -> str:
    model = "" if sources.model == demo_directory() / "model" else f"--model {sources.model} "
    return f"ragserve up {model}--knowledge {sources.out}"
