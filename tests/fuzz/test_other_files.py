"""Files beside sources and checkpoints: vectors, weights, questions, settings, manifests. Only our own errors come out.

Valid files with bytes replaced, removed or repeated, files of a format's own words, and random bytes.
"""

from __future__ import annotations

import io
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from checkpoint_import.weights import read_weights
from generator_svc.settings import GeneratorSettings
from generator_svc.weights import TensorFile
from orchestrator.settings import OrchestratorSettings
from ragserve.errors import RagserveError
from ragserve.serving.settings import ServerSettings, load_settings
from ragserve_cli.demo import read_questions
from ragserve_cli.plan import Assets, plan
from ragserve_cli.quickstart import STATE_FILE, _known_state
from retriever_svc.build import build_knowledge_base
from retriever_svc.build.vectors import embedding_files, open_npy, unpickle
from retriever_svc.checksums import CHECKSUMS_NAME, FileChecks
from retriever_svc.knowledge import DATASET_NAME, KnowledgeBase, describe
from retriever_svc.live.history import diff_versions, list_versions, read_passages
from retriever_svc.manifests import file_of
from retriever_svc.settings import RetrieverSettings
from tests.retriever_svc.models import write_model
from tests.tiny import tiny_passages, write_jsonl

Check = Callable[[bytes], None]


@st.composite
def mutated(draw: st.DrawFn, valid: bytes, words: tuple[bytes, ...] = ()) -> bytes:
    """A valid file with bytes or words put in, removed, repeated, or cut off."""
    content = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        at, size = draw(st.integers(0, len(content))), draw(st.integers(0, 8))
        how = draw(st.sampled_from(["replace", "insert", "remove", "repeat", "cut"]))
        new = draw(st.sampled_from(words)) if words and draw(st.booleans()) else draw(st.binary(max_size=8))
        if how in ("replace", "remove", "cut"):
            del content[at : len(content) if how == "cut" else at + size]
        if how in ("replace", "insert"):
            content[at:at] = new
        if how == "repeat":
            content[at:at] = bytes(content[at : at + size]) * draw(st.integers(1, 50))
    return bytes(content)


def contents(valid: bytes, words: tuple[bytes, ...]) -> st.SearchStrategy[bytes]:
    of_words = st.lists(st.sampled_from((*words, b" ", b"\n")), max_size=25).map(b"".join)
    return st.one_of(mutated(valid, words), mutated(valid, words), of_words, st.binary(max_size=200))


def fuzz(inputs: int, content: st.SearchStrategy[Any], check: Callable[[Any], None]) -> None:
    @settings(max_examples=inputs, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(content)
    def one(value: Any) -> None:
        with suppress(RagserveError):
            check(value)

    one()


def many(few: int, long: int) -> pytest.MarkDecorator:
    """Some inputs in every run, and more in the long one."""
    marks = [pytest.mark.long, pytest.mark.timeout(1800)]
    return pytest.mark.parametrize("inputs", [few, pytest.param(long, marks=marks)])


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


HEADER = b"{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }"
NPY_WORDS = (
    *(b"\x93NUMPY\x01\x00v\x00", b"\x93NUMPY\x02\x00v\x00\x00\x00", b"\x93NUMPY\x03\x00v\x00\x00\x00", HEADER),
    *(
        b"(",
        b")",
        b"[" * 300,
        b"'descr':",
        b"'<f8'",
        b"'O'",
        b"-1",
        b"10**9",
        b"1L",
        b"\\",
        b'"""',
        b"\t",
        b"#",
        b"\x00",
    ),
)


@many(100, 2_000)
def test_an_array_of_vectors(tmp_path: Path, inputs: int) -> None:
    path = tmp_path / "vectors.npy"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        (file,) = embedding_files([path], False)
        assert set(open_npy(file).unusable()) <= set(range(len(content)))

    check(npy(np.ones((3, 4), np.float32)))
    fuzz(inputs, contents(npy(np.ones((3, 4), np.float32)), NPY_WORDS), check)


VALUES = st.recursive(
    st.one_of(st.none(), st.integers(), st.floats(), st.text(max_size=3), st.binary(max_size=3)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.tuples(inner, inner), st.lists(inner, max_size=4).map(tuple)
    ),
    max_leaves=6,
)
VECTORS = st.one_of(
    VALUES,
    st.lists(st.floats(width=32), min_size=4, max_size=4).map(lambda found: np.array(found, np.float32)),
    st.just(np.ones((2, 2))),
)
ENTRIES = st.one_of(VALUES, st.lists(st.tuples(st.sampled_from(["a", "wiki:b", 3]) | VALUES, VECTORS), max_size=4))


@many(100, 1_000)
def test_pickled_vectors(tmp_path: Path, inputs: int) -> None:
    """Pickles of anything; not damaged ones, which could run anything."""
    path = tmp_path / "vectors.pkl"

    def check(value: Any) -> None:
        path.write_bytes(pickle.dumps(value))
        found = unpickle([path], [(0, "a"), (1, "b")], tmp_path / "out", 4)
        assert found.rows == len(value)

    check([("a", [1, 2, 3, 4]), ("x:b", np.ones(4))])
    fuzz(inputs, ENTRIES, check)


@many(100, 2_000)
def test_weights(tmp_path: Path, inputs: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2, 4), "a.scale": torch.ones(2, 1), "b": torch.ones(3, dtype=torch.int8)}, path)
    words = (
        b'"dtype":"F32"',
        b'"I8"',
        b'"shape":[2,4]',
        b"[-1]",
        b"999999999999",
        b'"data_offsets":[0,32]',
        b"{",
        b"}",
    )

    def check(content: bytes) -> None:
        path.write_bytes(content)
        with suppress(RagserveError):
            read_weights(tmp_path, allow_pickle=False)
        tensors = TensorFile(path)
        for name in tensors.names:
            with suppress(RagserveError):
                tensors.read(name)

    fuzz(inputs, contents(path.read_bytes(), words), check)


@many(60, 500)
def test_questions(tmp_path: Path, inputs: int) -> None:
    path = tmp_path / "questions.txt"

    def check(content: bytes) -> None:
        path.write_bytes(content)
        assert all(line == line.strip() and not line.startswith("#") for line in read_questions(path))

    fuzz(inputs, contents("# who\nWho wrote Hamlet?\nÉ\n".encode(), (b"#", b"\r", "\u2028".encode(), b"\xff")), check)


LITERALS = (
    *("1", "-1", "0", "1.5", "inf", "nan", "true", '"x"', '""', '"1"', "[]", '[1, "a"]', "{a = 1}", "1979-05-27"),
    *("07:32:00", "1979-05-27T07:32:00Z", "9" * 30, '"\\u0000"', "'''a\nb'''", '"dense"', '"::1"', f'"{"x" * 70}"'),
    f'"{"é" * 70}"',
)
SETTINGS = {"retriever": RetrieverSettings, "generator": GeneratorSettings, "orchestrator": OrchestratorSettings}
LINES = st.sampled_from(
    [f"{key} = {{}}" for cls in SETTINGS.values() for key in cls.model_fields if key != "server"]
) | st.sampled_from([f"server.{key} = {{}}" for key in ServerSettings.model_fields])
TABLES = st.dictionaries(
    st.sampled_from([*SETTINGS, "other", ""]), st.lists(st.tuples(LINES, st.sampled_from(LITERALS)), max_size=3)
)


def toml_of(tables: dict[str, list[tuple[str, str]]]) -> bytes:
    parts = [
        "\n".join([f"[{name}]" if name else "", *(line.format(value) for line, value in lines)])
        for name, lines in sorted(tables.items())
    ]
    return "\n".join(parts).encode()


@many(100, 2_000)
def test_settings_of_services(tmp_path: Path, inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "services.toml"
    valid = b'[retriever]\nmodel = "m"\nlexical = true\n[retriever.server]\nport = 0\n[generator]\nmodel = "m"\n'
    words = (b"[", b"]", b"[[retriever]]", b"=", b'"""', b"'", b"\\u0000", b"[" * 2000, b"{a=" * 2000, b"\xff", b"\r")

    def check(content: bytes) -> None:
        path.write_bytes(content)
        for cls in SETTINGS.values():
            with suppress(RagserveError):
                load_settings(cls, ["--config", str(path)])
        launches = plan(Assets(path, tmp_path, tmp_path), free_ports=True)
        assert len({launch.port for launch in launches}) == 3

    fuzz(inputs, st.one_of(contents(valid, words), TABLES.map(toml_of)), check)


@many(60, 500)
def test_what_quickstart_wrote(tmp_path: Path, inputs: int) -> None:
    def check(content: bytes) -> None:
        (tmp_path / STATE_FILE).write_bytes(content)
        assert isinstance(_known_state(tmp_path), dict)

    fuzz(inputs, contents(b'{"format": 1, "version": 3}', (b"[" * 2000, b'{"a":' * 2000, b"null", b"\xff")), check)


@pytest.fixture(scope="module")
def knowledge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions; their checksums are taken away, which would tell of every change."""
    directory = tmp_path_factory.mktemp("manifests")
    model = write_model(directory / "model", own_passage_encoder=False)
    for number in range(2):
        source = write_jsonl(directory / "passages.jsonl", tiny_passages(4, number))
        build_knowledge_base(source, directory / "kb", model, replace=bool(number))
    return directory / "kb"


@many(60, 1_500)
@pytest.mark.parametrize("version", [1, 2])
def test_manifests_of_a_knowledge_base(knowledge: Path, tmp_path: Path, version: int, inputs: int) -> None:
    home = shutil.copytree(knowledge, tmp_path / "kb")
    shutil.rmtree(home / CHECKSUMS_NAME)
    path = file_of(home / DATASET_NAME, version)

    def check(content: bytes) -> None:
        path.write_bytes(content)
        for read in (
            lambda: list_versions(home),
            lambda: describe(home),
            lambda: diff_versions(home, 1, 2),
            lambda: read_passages(home, ["0"], version),
        ):
            with suppress(RagserveError):
                read()

    fuzz(inputs, contents(path.read_bytes(), ()), check)


@many(60, 500)
def test_checksums_of_a_knowledge_base(knowledge: Path, tmp_path: Path, inputs: int) -> None:
    home = shutil.copytree(knowledge, tmp_path / "kb")
    names = sorted(path.name for path in (home / CHECKSUMS_NAME).iterdir())
    valid = (home / CHECKSUMS_NAME / names[0]).read_bytes()

    def check(content: bytes) -> None:
        for name in names:
            (home / CHECKSUMS_NAME / name).write_bytes(content)
        FileChecks(home).verify(KnowledgeBase.open(home).dataset)

    fuzz(inputs, contents(valid, (b"\n", b"0" * 64, b"\xff" * 64)), check)
