"""Checkpoints that cannot be imported: one clear error naming the file, and nothing left behind."""

from __future__ import annotations

import json
import pickle
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import FunnelConfig, FunnelModel

from checkpoint_import import ImportOptions, import_checkpoint
from ragserve.errors import DataLossError, FailedPreconditionError, InvalidInputError, NotFoundError, RagserveError
from tests import tiny


@pytest.fixture
def source(bart_composite: Path, tmp_path: Path) -> Path:
    return shutil.copytree(bart_composite, tmp_path / "hf")


def to_pickle(source: Path) -> None:
    torch.save(load_file(source / "model.safetensors"), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()


def edit_config(source: Path, **values: object) -> None:
    path = source / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def truncate(source: Path) -> None:
    path = source / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def shrink(source: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    edit_config(source, generator={**config["generator"], "vocab_size": 100})


BROKEN: dict[str, tuple[Callable[[Path], object], type[RagserveError], str, str]] = {
    "truncated": (truncate, DataLossError, "model.safetensors", "truncated"),
    "no weights": (lambda s: (s / "model.safetensors").unlink(), NotFoundError, "hf", "no weights"),
    "no config": (lambda s: (s / "config.json").unlink(), NotFoundError, "config.json", "missing"),
    "config no json": (
        lambda s: (s / "config.json").write_text("{"),
        FailedPreconditionError,
        "config.json",
        "not JSON",
    ),
    "config a list": (lambda s: (s / "config.json").write_text("[]"), FailedPreconditionError, "config.json", "object"),
    "no generator tokenizer": (
        lambda s: shutil.rmtree(s / "generator_tokenizer"),
        NotFoundError,
        "generator_tokenizer",
        "no tokenizer",
    ),
    "no question tokenizer": (
        lambda s: (s / "question_encoder_tokenizer" / "tokenizer.json").unlink(),
        NotFoundError,
        "question_encoder_tokenizer",
        "no tokenizer",
    ),
    "damaged tokenizer": (
        lambda s: (s / "generator_tokenizer" / "tokenizer.json").write_text("{}"),
        FailedPreconditionError,
        "generator_tokenizer",
        "read",
    ),
    "no section": (
        lambda s: edit_config(s, generator=None),
        FailedPreconditionError,
        "config.json",
        "not a RAG checkpoint",
    ),
    "another generator": (
        lambda s: edit_config(s, generator={"model_type": "gpt2"}),
        FailedPreconditionError,
        "config.json",
        "composite's generator has model_type 'gpt2'.*'bart'.*'t5'",
    ),
    "other sizes": (shrink, FailedPreconditionError, "generator_tokenizer", "another model's tokenizer"),
    "pickle": (to_pickle, FailedPreconditionError, "pytorch_model.bin", "--allow-pickle"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_checkpoints(source: Path, tmp_path: Path, name: str) -> None:
    damage, error, field, message = BROKEN[name]
    damage(source)
    with pytest.raises(error, match=message) as caught:
        import_checkpoint(source, tmp_path / "model")
    assert caught.value.field.endswith(field)
    assert "\n" not in caught.value.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def test_weights_of_another_size(source: Path, tmp_path: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    edit_config(source, question_encoder={**config["question_encoder"], "intermediate_size": 40})
    with pytest.raises(FailedPreconditionError, match="shapes") as caught:
        import_checkpoint(source, tmp_path / "model")
    assert caught.value.field.endswith("model.safetensors")


def test_weights_that_are_not_there(source: Path, tmp_path: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    edit_config(source, generator={**config["generator"], "decoder_layers": 3})
    with pytest.raises(FailedPreconditionError, match=r"lacks .* such as model\.decoder\.layers\.2"):
        import_checkpoint(source, tmp_path / "model")


@pytest.mark.parametrize("option", ["question_encoder", "passage_encoder"])
def test_an_encoder_that_transformers_fails_on_is_named_with_the_reason(tmp_path: Path, option: str) -> None:
    """The tracer of torch cannot follow a Funnel."""
    tokenizer = tiny.question_tokenizer()
    size = {"d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 48, "block_sizes": [1, 1]}
    FunnelModel(FunnelConfig(vocab_size=len(tokenizer), **size)).save_pretrained(tmp_path / "funnel")
    tokenizer.save_pretrained(tmp_path / "funnel")
    generator = tiny.save_generator(tmp_path / "bart", "bart")
    parts = {"question_encoder": tiny.save_question_encoder(tmp_path / "dpr"), option: tmp_path / "funnel"}
    with pytest.raises(
        FailedPreconditionError, match=r"funnel \(model_type 'funnel'\) cannot be .*'forward'"
    ) as caught:
        import_checkpoint(generator, tmp_path / "model", ImportOptions(pooling="cls", **parts))
    assert caught.value.field == str(tmp_path / "funnel")
    assert "\n" not in caught.value.message
    assert not (tmp_path / "model").exists()


def test_an_odd_generator_is_named_with_the_reason(source: Path, tmp_path: Path) -> None:
    config = json.loads((source / "config.json").read_text())
    edit_config(source, generator={**config["generator"], "encoder_attention_heads": 5})
    with pytest.raises(FailedPreconditionError, match=r"\(model_type 'bart'\) cannot be imported as a generator: V"):
        import_checkpoint(source, tmp_path / "model")


def test_pickles_are_read_when_allowed(source: Path, bart_composite: Path, tmp_path: Path) -> None:
    to_pickle(source)
    made = import_checkpoint(source, tmp_path / "a", ImportOptions(allow_pickle=True))
    assert made.manifest.files == import_checkpoint(bart_composite, tmp_path / "b").manifest.files


class Evil:
    """Unpickling it would create a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_pickled_code_does_not_run(source: Path, tmp_path: Path) -> None:
    (source / "model.safetensors").unlink()
    with (source / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"rag.generator.weight": Evil(tmp_path / "ran")}, file)
    with pytest.raises(DataLossError, match="not a pickle of tensors"):
        import_checkpoint(source, tmp_path / "model", ImportOptions(allow_pickle=True))
    assert not (tmp_path / "ran").exists()


def test_a_shard_outside_the_directory_is_refused(source: Path, tmp_path: Path) -> None:
    (source / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    index = {"weight_map": {"rag.x": "../elsewhere.safetensors"}}
    (source / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(NotFoundError, match="lists it"):
        import_checkpoint(source, tmp_path / "model")


def test_options_are_checked_first(source: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for out, options, field in (
        (tmp_path / "there", ImportOptions(), "out"),
        (tmp_path / "no" / "parent", ImportOptions(), "out"),
        (tmp_path / "model", ImportOptions(kind="rag"), "kind"),
        (tmp_path / "model", ImportOptions(score_scale=0.0), "score_scale"),
        (tmp_path / "model", ImportOptions(score_scale=float("nan")), "score_scale"),
    ):
        with pytest.raises(InvalidInputError) as caught:
            import_checkpoint(source, out, options)
        assert caught.value.field == field


def test_no_directory(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="not a directory"):
        import_checkpoint(tmp_path / "nothing", tmp_path / "model")


def test_progress_ends_with_done(source: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    import_checkpoint(source, tmp_path / "model", progress=lambda *step: seen.append(step))
    assert [step for step, _, _ in seen] == ["query encoder", "generator", "checksums", "done"]
    assert [done for _, done, _ in seen] == [0, 1, 2, 3]


def test_a_disk_that_is_full_is_not_the_fault_of_the_checkpoint(source: Path, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(
            RagserveError, match=r"^cannot write .*model\.onnx: the file is too large for the file system"
        ):
            import_checkpoint(source, tmp_path / "model")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
