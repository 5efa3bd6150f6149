"""Errors that clients get name what is served, not where it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragserve.errors import DataLossError, InvalidInputError, NotFoundError
from ragserve.serving.private_paths import PrivatePath, without_paths


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ("/srv/kb has no version 9; it has 1, 2", "the knowledge base has no version 9; it has 1, 2"),
        ("cannot write /srv/kb: it is full", "cannot write the knowledge base: it is full"),
        ("/srv/kb/passages.lance: damaged", "passages.lance in the knowledge base: damaged"),
        ("LanceError(IO): srv/kb/passages.lance/a, x", "LanceError(IO): passages.lance/a in the knowledge base, x"),
        ("/srv/kb2 and /a/srv/kb are others", "/srv/kb2 and /a/srv/kb are others"),
        ("try `ragserve kb add`", "try `ragserve kb add`"),
        ("/kb is gone, use ragserve kb build", "the model directory is gone, use ragserve kb build"),
    ],
)
def test_paths_become_names(message: str, said: str) -> None:
    paths = (
        PrivatePath(Path("/srv/kb"), "knowledge", "the knowledge base"),
        PrivatePath(Path("/kb"), "model", "the model directory"),
    )
    found = without_paths(NotFoundError(message), paths)
    assert (type(found), found.message, found.args) == (NotFoundError, said, (said,))


def test_links_and_other_names_of_a_path_are_found(tmp_path: Path) -> None:
    real, link = tmp_path / "wissen größer", tmp_path / "link"
    real.mkdir()
    link.symlink_to(real)
    paths = (PrivatePath(link, "knowledge", "the knowledge base"),)
    lance = str(real).lstrip("/").replace(" ", "%20").replace("ö", "%C3%B6").replace("ß", "%C3%9F")
    for path in (str(link), str(real)):
        found = without_paths(DataLossError(f"{path} is damaged", field=f"{path}/a", retry_after_seconds=2), paths)
        assert (found.message, found.field) == ("the knowledge base is damaged", "knowledge")
        assert found.retry_after_seconds == 2
    found = without_paths(DataLossError(f"not found: {lance}/a/b"), paths)
    assert found.message == "not found: a/b in the knowledge base"


def test_an_error_without_paths_stays_the_same_object() -> None:
    error = InvalidInputError("k", "k is 0; it must be at least 1")
    assert without_paths(error, (PrivatePath(Path("/srv/kb"), "knowledge", "the knowledge base"),)) is error
