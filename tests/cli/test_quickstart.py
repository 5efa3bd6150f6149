"""What `ragserve quickstart` builds again, what it says of other changes, and what it refuses."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from ragserve.errors import FailedPreconditionError, InvalidInputError, RagserveError, UnavailableError
from ragserve_cli.files_place import Files
from ragserve_cli.quickstart import STATE_FILE, Sources, build_if_changed
from ragserve_cli.reach import reached
from retriever_svc.build import BuildOptions, ReadOptions
from retriever_svc.build.journal import open_journal
from tests.cli.conftest import Assets, Cli


@pytest.fixture
def sources(assets: Assets, tmp_path: Path) -> Sources:
    documents = tmp_path / "documents"
    documents.mkdir()
    for name in ("tower", "bridge", "sea"):
        (documents / f"{name}.txt").write_text(f"the {name} was painted")
    return Sources.of(documents, tmp_path / "kb", assets.model)


def test_changes_that_a_rebuild_leaves_out_are_named(sources: Sources, capsys: pytest.CaptureFixture[str]) -> None:
    build_if_changed(sources)
    build_if_changed(sources)
    assert "has not changed" in capsys.readouterr().err
    for name in ("tower.txt", "sea.txt"):
        assert Files(sources.out).delete([name]).deleted == 1
    build_if_changed(sources)
    assert "warning" not in capsys.readouterr().err
    first, last = 2, Files(sources.out).versions()[-1].version
    (sources.path / "tower.txt").write_text("the tower was built")
    build_if_changed(sources)
    said = " ".join(capsys.readouterr().err.split())
    assert f"changes made since the last build (versions {first} to {last}) are not in the new version" in said
    assert f"they stay readable as version {last} (ragserve kb rollback {sources.out} {last})" in said
    (sources.path / "tower.txt").write_text("the tower fell")
    build_if_changed(sources)
    assert "warning" not in capsys.readouterr().err


def test_only_files_that_are_read_count_as_changes(
    sources: Sources, assets: Assets, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where the knowledge base is in the folder that is read."""
    inside = Sources.of(sources.path, sources.path / "kb", assets.model)
    build_if_changed(inside)
    (sources.path / ".git").mkdir()
    (sources.path / ".git" / "index.txt").write_text("hidden")
    (sources.path / "picture.png").write_bytes(b"")
    build_if_changed(inside)
    assert "has not changed" in capsys.readouterr().err
    (sources.path / "city.txt").write_text("the city was built")
    build_if_changed(inside)
    assert "version 2, 4 passages" in capsys.readouterr().err


def test_a_knowledge_base_of_an_older_quickstart_is_not_built_again(
    sources: Sources, capsys: pytest.CaptureFixture[str]
) -> None:
    build_if_changed(sources)
    state = json.loads((sources.out / STATE_FILE).read_text())
    del state["version"]
    (sources.out / STATE_FILE).write_text(json.dumps(state))
    build_if_changed(sources)
    assert "has not changed" in capsys.readouterr().err


def test_how_documents_are_read_is_said_as_for_a_build(
    assets: Assets, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.table").write_text("abstract,n\nthe tower,1\nthe sea was painted,2\n")

    def build(**limits: int) -> str:
        reading = ReadOptions(text_column="abstract", without_columns=("n",))
        options = BuildOptions(skip_bad_rows=True, reading=reading, **limits)
        build_if_changed(Sources.of(tmp_path / "a.table", tmp_path / "kb", assets.model, "csv", options))
        return capsys.readouterr().err

    assert "version 1, 2 passages" in build()
    assert "has not changed" in build()
    assert "version 2, 1 passage" in build(max_text_bytes=12)
    assert "has not changed" in build(max_text_bytes=12)


def test_errors_of_reading_name_the_flags_of_quickstart(cli: Cli, assets: Assets, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("abstract\nthe tower\nthe sea was painted\n")
    command = ["quickstart", tmp_path / "a.csv", "--out", tmp_path / "kb", "--model", assets.model]
    unnamed = cli(*command)
    assert (unnamed.returncode, "the columns are 'abstract'; name the one" in unnamed.stderr) == (2, True)
    assert "(--text-column)" in unnamed.stderr
    small = cli(*command, "--text-column", "abstract", "--max-text-bytes", 3)
    assert (small.returncode, "a text may have 3 (--max-text-bytes): divide it" in small.stderr) == (2, True)


def test_a_pipe_is_refused(assets: Assets, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(InvalidInputError, match="is neither a file nor a folder: use ragserve kb build"):
        Sources.of(tmp_path / "pipe.jsonl", tmp_path / "kb", assets.model)


def test_a_file_that_is_not_read_names_those_that_are(assets: Assets, tmp_path: Path) -> None:
    (tmp_path / "notes.docx").write_bytes(b"PK")
    with pytest.raises(InvalidInputError, match=r"notes\.docx is not a kind of file that is read: \.jsonl, .*\.pdf"):
        Sources.of(tmp_path / "notes.docx", tmp_path / "kb", assets.model)


def test_a_place_that_cannot_be_written_to_says_what_to_name(sources: Sources, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    blocked = Sources(sources.path, tmp_path / "file" / "kb", sources.model)
    with pytest.raises(RagserveError, match=r"cannot write to .*, or name another place with --out"):
        build_if_changed(blocked)


def test_a_second_quickstart_of_a_folder_says_to_wait(sources: Sources) -> None:
    building = sources.out.parent / ".kb.building"
    with (
        open_journal(sources.out, building, "another"),
        pytest.raises(FailedPreconditionError, match=r"wait until it has ended, or choose another name \(--out KB\)"),
    ):
        build_if_changed(sources)


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("the orchestrator is loading", "the orchestrator is still loading (here:1): try again in a moment"),
        ("the orchestrator is shutting down", "no answer from here:1 .* start the services with 'ragserve up'"),
    ],
)
def test_services_that_are_starting_need_only_time(said: str, expected: str) -> None:
    with pytest.raises(UnavailableError) as raised, reached("here:1"):
        raise UnavailableError(said)
    assert raised.match(expected.replace("(here:1)", r"\(here:1\)"))
