"""Smaller precisions of a query encoder: another graph next to `model.onnx`, kept only when it agrees with it.

`model.int8.onnx` is for CPUs, `model.float16.onnx` for GPUs. The retriever chooses by its setting `encoder_precision`.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from tokenizers import Tokenizer

from checkpoint_import.graphs import Precision, check_precisions, graph_name
from checkpoint_import.int8 import fold_weights, to_int8
from ragserve.checkpoint import IMPORT_AGAIN, MANIFEST_NAME, Manifest, load_manifest, sha256_of, verify_files
from ragserve.errors import FailedPreconditionError
from ragserve.files import file_error, file_errors, require_file
from ragserve.unfinished import unfinished

QUERY_ENCODER = "query_encoder"
OUTPUT_NAME = "query_vector"
MIN_COSINE = 0.98  # mean over the samples; a sound conversion gives 0.997 and more
# Sums over tokens and squares of a whole vector stay float32: float16 ends at 65,504.
FLOAT32_OPERATORS = ("ReduceSum", "ReduceL2", "ReduceMean", "Clip")
SAMPLES = (
    *("who wrote the play Hamlet?", "what is the capital of Australia", "when did the second world war end?"),
    *("how many moons does Jupiter have", "1969", "Where was Marie Curie born, and what did she discover?"),
    "which river flows through the cities of Vienna, Budapest and Belgrade before it reaches the Black Sea",
    "The Treaty of Westphalia ended the Thirty Years' War in 1648 and is seen as the beginning of the modern order.",
)


def add_precision(model: Path, precision: Precision) -> Path:
    """Write the query encoder of a model directory in a smaller precision, and list the file in the manifest.

    A file of an earlier conversion is replaced. Returns the file's path.

    Raises:
        InvalidInputError: no such precision.
        NotFoundError: the directory, its manifest or a file of the encoder is missing.
        DataLossError: a file of the encoder is not the one that the manifest lists.
        FailedPreconditionError: the graph cannot be converted, or the result differs grossly from float32.
    """
    check_precisions([precision])
    manifest = load_manifest(model)
    name = graph_name(precision)
    listed = {key: value for key, value in manifest.files.items() if key != f"{QUERY_ENCODER}/{name}"}
    verify_files(model, replace(manifest, files=listed), QUERY_ENCODER)
    path = convert(model / QUERY_ENCODER, precision)
    files = dict(sorted({**listed, f"{QUERY_ENCODER}/{name}": sha256_of(path)}.items()))
    with file_errors("write", model / MANIFEST_NAME):
        _write_manifest(model, replace(manifest, files=files))
    return path


def convert(directory: Path, precision: Precision) -> Path:
    """Write `model.<precision>.onnx` next to `model.onnx`; nothing is left when it fails.

    Raises:
        NotFoundError: `model.onnx` or `tokenizer.json` is missing.
        FailedPreconditionError: the graph cannot be converted, or the result differs grossly from float32.
    """
    source, path = directory / "model.onnx", directory / graph_name(precision)
    for needed in (source, directory / "tokenizer.json"):
        require_file(needed, IMPORT_AGAIN)
    temporary = path.with_name(f".{path.name}")
    try:
        with unfinished(temporary):
            onnx.save(_converted(onnx.load(str(source)), precision), str(temporary))
            similarity = mean_cosine(source, temporary, directory / "tokenizer.json")
        _require_agreement(similarity, source, precision)
        temporary.replace(path)
    except OSError as error:
        raise file_error(error, "write", path) from error
    except FailedPreconditionError as error:
        raise FailedPreconditionError(f"{source}: {error.message}", field=str(source)) from error
    except Exception as error:  # onnx and ONNX Runtime raise bare exceptions of many kinds
        raise FailedPreconditionError(
            f"{source} cannot be converted to {precision}: {error}", field=str(source)
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def mean_cosine(reference: Path, converted: Path, tokenizer: Path) -> float:
    """Mean cosine between the vectors that two graphs give for a few sentences."""
    reader = Tokenizer.from_file(str(tokenizer))
    samples = [reader.encode(text).ids[:32] for text in SAMPLES]
    expected, found = _vectors(reference, samples), _vectors(converted, samples)
    lengths = np.linalg.norm(expected, axis=1) * np.linalg.norm(found, axis=1)
    return float(((expected * found).sum(axis=1) / np.maximum(lengths, np.finfo(np.float64).tiny)).mean())


def _converted(model: onnx.ModelProto, precision: Precision) -> onnx.ModelProto:
    if precision == "int8":
        return to_int8(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # constants that float16 rounds to zero or cuts off, as the attention mask's
        converted: onnx.ModelProto = convert_float_to_float16(
            fold_weights(model), keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *FLOAT32_OPERATORS]
        )
    return converted


def _vectors(path: Path, samples: Iterable[list[int]]) -> NDArray[np.float64]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    rows = []
    for ids in samples:
        inputs = {"input_ids": np.array([ids]), "attention_mask": np.ones((1, len(ids)), dtype=np.int64)}
        (vectors,) = session.run([OUTPUT_NAME], inputs)
        rows.append(vectors[0])
    return np.asarray(rows, dtype=np.float64)


def _require_agreement(similarity: float, source: Path, precision: Precision) -> None:
    if not similarity >= MIN_COSINE:
        raise FailedPreconditionError(
            f"its vectors in {precision} have a mean cosine of {similarity:.3f} with float32 on sample texts "
            f"(at least {MIN_COSINE} is needed): serve this encoder in float32",
            field=str(source),
        )


def _write_manifest(model: Path, manifest: Manifest) -> None:
    """Replace the manifest at once."""
    handle, temporary = tempfile.mkstemp(prefix=f".{MANIFEST_NAME}.", dir=model)
    try:
        with unfinished(Path(temporary)), os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(manifest.to_json())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(model / MANIFEST_NAME)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
