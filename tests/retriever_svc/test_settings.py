"""Settings of the retriever, from each place that they come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from ragserve.errors import InvalidInputError
from ragserve.serving.settings import load_settings
from retriever_svc.kinds import SearchKind
from retriever_svc.settings import RetrieverSettings

NEEDED = ("--model", "m", "--knowledge", "k", "--lexical")


@pytest.mark.parametrize("kind", SearchKind)
@pytest.mark.parametrize("written", [str.lower, str.upper, str.capitalize])
def test_a_search_kind_is_the_same_in_any_case_from_any_place(kind, written, tmp_path: Path, monkeypatch) -> None:
    word = written(kind.value)
    file = tmp_path / "settings.toml"
    file.write_text(f'[retriever]\nsearch_kind = "{word}"\n')

    def found(*flags: str) -> SearchKind:
        return load_settings(RetrieverSettings, [*NEEDED, *flags]).engine_options().lookup.kind

    assert found("--search-kind", word) is kind
    assert found("--config", str(file)) is kind
    monkeypatch.setenv("RAGSERVE_RETRIEVER_SEARCH_KIND", word)
    assert found() is kind


def test_help_lists_the_search_kinds_as_they_are_written_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        load_settings(RetrieverSettings, ["--help"])
    assert "--search-kind {dense,bm25,weighted,rrf}" in capsys.readouterr().out


def test_an_unknown_search_kind_is_refused() -> None:
    with pytest.raises(InvalidInputError, match="dense"):
        load_settings(RetrieverSettings, [*NEEDED, "--search-kind", "words"])
