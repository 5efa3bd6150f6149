"""Sources that are pipes, and directories that a knowledge base is built to."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ragserve.errors import FailedPreconditionError, InvalidInputError
from retriever_svc.build import Progress, build_knowledge_base
from retriever_svc.knowledge import describe
from retriever_svc.live.history import read_passages
from retriever_svc.loading import RetrievalOptions
from tests.retriever_svc.sources import WHOLE

MAIN = "from ragserve_cli.main import main; main()"
ONE = '{"id": "1", "text": "one"}\n'


def ragserve(*arguments: object, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", MAIN, *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=100, check=False)


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_standard_input_is_a_source(name: str, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "kb"
    refused = ragserve("kb", "build", name, out, "--model", model, stdin=ONE)
    assert refused.returncode == 2
    assert f"{name} is a pipe: say the format of what comes (--format)" in refused.stderr
    made = ragserve("kb", "build", name, out, "--model", model, "--format", "jsonl", stdin=ONE)
    assert made.returncode == 0, made.stderr
    assert describe(out).passages == 1
    wrong = ragserve("kb", "build", name, tmp_path / "kb2", "--model", model, "--format", "jsonl", stdin="{\n")
    assert wrong.returncode == 2
    place = "stdin" if name == "-" else name
    assert f"\nerror: {place}:1, column 2: not JSON" in wrong.stderr
    assert wrong.stderr.count("/ragserve-") == 1  # the note that names the temporary folder


def test_rows_without_ids_of_two_pipes_do_not_replace_each_other(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(ONE)
    assert ragserve("kb", "build", tmp_path / "a.jsonl", tmp_path / "kb", "--model", model).returncode == 0

    def add(text: str, name: str = "-") -> str:
        options = ["--format", "csv", "--model", model, "--split", "none"]
        done = ragserve("kb", "add", tmp_path / "kb", name, *options, stdin=f"text\n{text}\n")
        assert done.returncode == 0, done.stderr
        return done.stderr

    digest = hashlib.sha256(b"text\ntwo\n").hexdigest()[:12]
    said = add("two")
    made_of = "ids are made of a digest of its content and the line, as in"
    assert f"stdin has no column 'id': {made_of} pipe-{digest}:" in said
    assert "1 passage added, 0 replaced" in said
    assert "1 passage added, 0 replaced" in add("three")
    assert "1 passage added, 0 replaced" in add("four", "/dev/stdin")
    assert "0 passages added, 1 replaced" in add("two")  # the same content
    assert "beginning with stdin:2 ('pipe-" in add("word " * 1000)
    version = describe(tmp_path / "kb").version
    assert read_passages(tmp_path / "kb", [f"pipe-{digest}:2"], version)[1][f"pipe-{digest}:2"].text == "two"


def test_standard_input_that_is_a_file_is_no_file_named_stdin(model: Path, tmp_path: Path) -> None:
    for text in ("one", "two"):
        (tmp_path / text).write_text(f"text\n{text}\n")
    command = f"{sys.executable} -c '{MAIN}' kb"
    options = f"--model {model} --format csv"
    done = subprocess.run(
        f"{command} build /dev/stdin {tmp_path}/kb {options} < {tmp_path}/one && "
        f"{command} add {tmp_path}/kb /dev/stdin {options} < {tmp_path}/two",
        shell=True,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "1 passage added, 0 replaced" in done.stderr


def test_a_document_of_a_pipe_has_no_title_of_its_own(model: Path, tmp_path: Path) -> None:
    made = ragserve("kb", "build", "-", tmp_path / "kb", "--model", model, "--format", "text", stdin="the river")
    assert made.returncode == 0, made.stderr
    name = f"pipe-{hashlib.sha256(b'the river').hexdigest()[:12]}"
    (passage,) = read_passages(tmp_path / "kb", [name], 1)[1].values()
    assert (passage.title, passage.text) == ("", "the river")


def test_rows_are_added_from_standard_input(model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(ONE)
    assert ragserve("kb", "build", tmp_path / "a.jsonl", tmp_path / "kb", "--model", model).returncode == 0
    added = ragserve("kb", "add", tmp_path / "kb", "-", "--format", "csv", "--model", model, stdin="text\ntwo\n")
    assert added.returncode == 0, added.stderr
    assert "1 passage added" in added.stderr
    assert describe(tmp_path / "kb").passages == 2


def test_a_named_pipe_is_a_source(model: Path, options: RetrievalOptions, tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text(ONE + '{"id": "2", "text": "two"}\n'))
    writer.start()
    assert build_knowledge_base(pipe, tmp_path / "kb", model, options=options).passages == 2
    writer.join()


def test_an_empty_directory_is_filled(model: Path, options: RetrievalOptions, tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "volume"
    source.write_text(ONE)
    (out / "lost+found").mkdir(parents=True)
    before = out.stat().st_ino
    assert build_knowledge_base(source, out, model, options=options).passages == 1
    assert out.stat().st_ino == before
    assert sorted(path.name for path in out.iterdir()) == ["checksums", "lost+found", "passages.lance"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "volume"]
    with pytest.raises(FailedPreconditionError, match=r"volume exists: .* ask to replace it \(--replace\)"):
        build_knowledge_base(source, out, model, options=options)
    assert build_knowledge_base(source, out, model, options=options, replace=True).version == 2


def test_a_mounted_volume_is_filled(model: Path, tmp_path: Path) -> None:
    """On a file system of its own nothing can be renamed onto it, or from beside it."""
    source, out = tmp_path / "a.jsonl", tmp_path / "volume"
    source.write_text(ONE)
    out.mkdir()
    command = (
        f"mount -t tmpfs none {out} && {sys.executable} -c '{MAIN}' kb build {source} {out} --model {model} && ls {out}"
    )
    if (
        shutil.which("unshare") is None
        or subprocess.run(
            ["unshare", "-Urm", "mount", "-t", "tmpfs", "none", str(out)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("this user may not mount")
    done = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", command], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["checksums", "passages.lance"]


def test_a_build_into_an_empty_directory_goes_on_after_a_kill(model: Path, tmp_path: Path) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "volume"
    source.write_text("".join(f'{{"id": "{number}", "text": "city {number}"}}\n' for number in range(3000)))
    out.mkdir()
    command = [sys.executable, "-c", MAIN, "kb", "build", source, out, "--model", model, "--shard-passages", "50"]
    process = subprocess.Popen(list(map(str, command)), stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((out / ".building" / "shards").glob("*.json")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (out / ".building").is_dir()
    (out / "checksums").mkdir(exist_ok=True)
    (out / "checksums" / "old").touch()
    made = ragserve(*command[3:])
    assert made.returncode == 0, made.stderr
    assert "going on with an earlier build" in made.stderr
    assert describe(out).passages == 3000
    assert sorted(path.name for path in out.iterdir()) == ["checksums", "passages.lance"]
    assert not (out / "checksums" / "old").exists()


@pytest.mark.parametrize("empty_before", [False, True])
def test_what_someone_else_makes_meanwhile_is_kept(
    model: Path, options: RetrievalOptions, tmp_path: Path, empty_before: bool
) -> None:
    source, out = tmp_path / "a.jsonl", tmp_path / "kb"
    source.write_text(ONE)
    theirs = out / "passages.lance" / "theirs"
    if empty_before:
        out.mkdir()

    def make_theirs(_: Progress) -> None:
        theirs.parent.mkdir(parents=True, exist_ok=True)
        theirs.touch()

    with pytest.raises(FailedPreconditionError, match="kb was made by someone else meanwhile"):
        build_knowledge_base(source, out, model, options=options, progress=make_theirs)
    assert theirs.exists()


def test_what_cannot_be_built_to_is_named(
    model: Path, knowledge_base: Path, options: RetrievalOptions, tmp_path: Path
) -> None:
    source = tmp_path / "a.jsonl"
    source.write_text(ONE)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for out, message in (
        (source, r"a\.jsonl is a file, and must be a directory"),
        (tmp_path / "full", r"full is not empty and is not a knowledge base: choose another name"),
    ):
        for replace in (False, True):
            with pytest.raises(FailedPreconditionError, match=message):
                build_knowledge_base(source, out, model, options=options, replace=replace)
    with pytest.raises(FailedPreconditionError, match="is in the source"):
        build_knowledge_base(knowledge_base, knowledge_base / "inner", model, options=options)
    with pytest.raises(InvalidInputError, match="is empty"):
        build_knowledge_base(_touched(tmp_path / "e.jsonl"), tmp_path / "kb", model, options=options)


def test_a_knowledge_base_may_be_in_the_folder_that_it_is_made_of(
    model: Path, options: RetrievalOptions, tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("one")
    for _ in range(2):
        made = build_knowledge_base(tmp_path, tmp_path / "kb", model, options=options, replace=True, build=WHOLE)
        assert made.passages == 1


def _touched(path: Path) -> Path:
    path.touch()
    return path
