from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from generator_svc.device import choose_device
from generator_svc.loading import load_generator
from generator_svc.weights import TensorFile
from ragserve.checkpoint import MANIFEST_NAME
from ragserve.errors import DataLossError, FailedPreconditionError, NotFoundError, RagserveError
from ragserve.token_rules import TokenRules
from tests.generator_svc.support import CPU


@pytest.fixture
def copy(bart_dir: Path, tmp_path: Path) -> Path:
    """A model directory to damage; its checksums are not checked."""
    directory = shutil.copytree(bart_dir, tmp_path / "model")
    manifest = json.loads((directory / MANIFEST_NAME).read_text(encoding="utf-8"))
    (directory / MANIFEST_NAME).write_text(json.dumps({**manifest, "files": {}}), encoding="utf-8")
    return directory


def change_config(directory: Path, **changes: object) -> None:
    path = directory / "generator" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def fails(directory: Path, error: type[RagserveError]) -> RagserveError:
    with pytest.raises(error) as caught:
        load_generator(directory, CPU)
    return caught.value


def test_what_the_checkpoint_says(bart_dir: Path, t5_dir: Path) -> None:
    bart, t5 = load_generator(bart_dir, CPU), load_generator(t5_dir, CPU)
    assert (bart.model_type, bart.trained_mode) == ("bart", "token")
    assert (t5.model_type, t5.trained_mode) == ("t5", "sequence")
    for loaded, start, eos in ((bart, 2, 2), (t5, 0, 1)):
        assert loaded.tokens.token_rules == loaded.tokens.sequence_rules == TokenRules(start, (eos,))
    assert bart.defaults["n_docs"] == 3


def test_the_manifest_goes_before_the_generation_file(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST_NAME).read_text(encoding="utf-8"))
    del manifest["tokens"]  # as earlier versions wrote it
    manifest["generation"] = {"num_beams": 4, "forced_bos_token_id": 0}
    (copy / MANIFEST_NAME).write_text(json.dumps(manifest), encoding="utf-8")
    path = copy / "generator" / "generation_config.json"
    path.write_text(json.dumps({"num_beams": 2, "max_length": 50, "forced_eos_token_id": 2}), encoding="utf-8")
    loaded = load_generator(copy, CPU)
    assert (loaded.defaults["num_beams"], loaded.defaults["max_length"]) == (4, 50)
    assert (loaded.tokens.token_rules.forced_bos_token_id, loaded.tokens.token_rules.forced_eos_token_id) == (0, (2,))


def test_int8_rows_and_halves_are_read_as_float32(tmp_path: Path) -> None:
    weight = torch.randn(6, 5)
    scale = weight.abs().amax(1, keepdim=True) / 127
    path = tmp_path / "w.safetensors"
    stored = {
        "a": (weight / scale).round().to(torch.int8),
        "a.scale": scale.half(),
        "b": weight.half(),
        "c": weight,
        "d.scale": weight[0].clone(),
    }
    save_file(stored, str(path), metadata={"ragserve.quantization": "int8-rowwise"})
    file = TensorFile(path)
    tensors = {name: file.read(name) for name in file.names}
    assert set(tensors) == {"a", "b", "c", "d.scale"}
    assert all(tensor.dtype == torch.float32 for tensor in tensors.values())
    torch.testing.assert_close(tensors["a"], weight, atol=float(scale.max()), rtol=0)
    assert torch.equal(tensors["c"], weight)
    save_file({"a": stored["a"]}, str(path))
    with pytest.raises(FailedPreconditionError, match=r"a\.scale"):
        TensorFile(path).read("a")


def test_a_model_stored_in_int8_loads(copy: Path) -> None:
    path = copy / "generator" / "model.safetensors"
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in load_file(str(path)).items():
        if tensor.dim() == 2:
            scale = tensor.abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
            stored[name], stored[f"{name}.scale"] = (tensor / scale).round().to(torch.int8), scale
        else:
            stored[name] = tensor.half()
    save_file(stored, str(path), metadata={"ragserve.quantization": "int8-rowwise"})
    (state,) = load_generator(copy, CPU).model.encode([[5, 6, 7]]).documents
    assert all(layer.isfinite().all() for layer in state.layers)


def test_damaged_weights_are_named(copy: Path) -> None:
    path = copy / "generator" / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert fails(copy, DataLossError).field == str(path)
    path.write_bytes(b"")
    assert fails(copy, DataLossError).field == str(path)
    path.unlink()
    assert fails(copy, NotFoundError).field == str(path)


def test_a_wrong_checksum_is_data_loss(bart_dir: Path, tmp_path: Path) -> None:
    directory = shutil.copytree(bart_dir, tmp_path / "model")
    path = directory / "generator" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x7f")
    assert str(path) in str(fails(directory, DataLossError))


def test_missing_unexpected_and_misshapen_tensors_are_named(copy: Path) -> None:
    path = copy / "generator" / "model.safetensors"
    tensors = load_file(str(path))
    name = next(name for name in tensors if name.endswith("decoder.layers.1.fc1.weight"))
    short = name.removeprefix("model.")
    save_file({key: value for key, value in tensors.items() if key != name}, str(path))
    assert f"{short} is missing" in str(fails(copy, FailedPreconditionError))
    save_file({**tensors, "decoder.layers.9.fc1.weight": tensors[name].clone()}, str(path))
    assert "decoder.layers.9.fc1.weight" in str(fails(copy, FailedPreconditionError))
    save_file({**tensors, name: tensors[name][:-1].clone()}, str(path))
    assert f"{short} has shape" in str(fails(copy, FailedPreconditionError))


def test_other_models_and_broken_files_are_refused(copy: Path) -> None:
    part = copy / "generator"
    change_config(copy, activation_function="prelu")
    assert "prelu" in str(fails(copy, FailedPreconditionError))
    change_config(copy, model_type="gpt2")
    assert "gpt2" in str(fails(copy, FailedPreconditionError))
    (part / "config.json").write_text("{", encoding="utf-8")
    assert str(part / "config.json") in str(fails(copy, FailedPreconditionError))
    (part / "config.json").unlink()
    assert fails(copy, NotFoundError).field == str(part / "config.json")


def test_cuda_that_is_not_there() -> None:
    assert choose_device("cpu") == CPU
    if not torch.cuda.is_available():
        assert choose_device("auto") == CPU
        with pytest.raises(FailedPreconditionError, match="CUDA"):
            choose_device("cuda")


def test_int8_runs_on_cpu_only() -> None:
    assert choose_device("auto", "int8") == CPU
    with pytest.raises(FailedPreconditionError, match="cpu only"):
        choose_device("cuda", "int8")
