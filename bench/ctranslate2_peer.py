"""The peer of a single decode step: CTranslate2 on the weights of the random BART, without documents to combine.

It runs in a process of its own and answers over a pipe: while it waits its threads sleep, and it never shares an OpenMP
pool with torch. That process never imports torch; a conversion has another one, so that its memory is given back.

    CTranslate2(generator, contexts, precision="int8", threads=2).seconds(beams=4, tokens=21)
"""

from __future__ import annotations

import argparse
import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, Literal

from bench import CACHE

Precision = Literal["int8", "float32"]
PRECISIONS: tuple[Precision, ...] = ("int8", "float32")
PACKAGE = "ctranslate2"
CLOSE_SECONDS = 10.0
Contexts = Sequence[Sequence[str]]  # tokens of each context, special ones included


class CTranslate2:
    """BART in a process of its own. Environment variables such as CT2_USE_MKL and CT2_VERBOSE reach it."""

    def __init__(self, generator: Path, contexts: Contexts, *, precision: Precision, threads: int) -> None:
        arguments = ["serve", str(converted(generator, precision)), "--precision", precision, "--threads", str(threads)]
        self._process = subprocess.Popen(_command(arguments), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self.compute_type = str(self._ask({"contexts": contexts})["compute_type"])
        except BaseException:
            self.close()
            raise

    def seconds(self, beams: int, tokens: int) -> float:
        """Of generating exactly `tokens` tokens for all contexts in one batch: greedily, or with more beams."""
        return float(self._ask({"beams": beams, "tokens": tokens})["seconds"])

    def close(self) -> None:
        """Ends the process."""
        requests, answers = self._pipes()
        with contextlib.suppress(BrokenPipeError):  # what a process that died did not read
            requests.close()
        try:
            self._process.wait(CLOSE_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        answers.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        requests, answers = self._pipes()
        try:
            requests.write(json.dumps(request) + "\n")
            requests.flush()
            line = answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"CTranslate2's process ended (status {self._process.wait()}): see its messages above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout


def converted(generator: Path, precision: Precision) -> Path:
    """The model of a Hugging Face directory in CTranslate2's format, made once and kept in the cache."""
    name = f"{generator.resolve().parent.name}-{PACKAGE}-{version(PACKAGE)}-{precision}"
    directory = CACHE.resolve() / name
    if not directory.is_dir():
        arguments = ["convert", str(generator), "--precision", precision, "--to", str(directory)]
        subprocess.run(_command(arguments), check=True)
    return directory


def _command(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "bench.ctranslate2_peer", *arguments]


def convert(generator: Path, precision: Precision, directory: Path) -> None:
    """Convert a Hugging Face BART; the directory is there once it is complete."""
    from ctranslate2.converters import TransformersConverter  # noqa: PLC0415 - imports torch

    class Converter(TransformersConverter):  # type: ignore[misc]
        """CTranslate2 asks the configuration for a field that BART's no longer has: BART normalizes after each part."""

        def load_model(self, *args: Any, **kwargs: Any) -> Any:
            """The model, with that field."""
            model = super().load_model(*args, **kwargs)
            model.config.normalize_before = False
            return model

    partial = directory.with_name(f"{directory.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    Converter(str(generator)).convert(str(partial), quantization=precision)
    partial.rename(directory)


def serve(directory: Path, precision: Precision, threads: int) -> None:
    """Answer requests, a JSON object a line, until standard input ends: first the contexts, then what to time."""
    import ctranslate2  # noqa: PLC0415 - only here: its threads must not meet torch's

    translator = ctranslate2.Translator(
        str(directory), device="cpu", compute_type=precision, inter_threads=1, intra_threads=threads
    )
    contexts: list[list[str]] = []
    for line in sys.stdin:
        request = json.loads(line)
        if "contexts" in request:
            contexts, answer = request["contexts"], {"compute_type": translator.compute_type}
        else:
            answer = {"seconds": timed(translator, contexts, request["beams"], request["tokens"])}
        print(json.dumps(answer), flush=True)


def timed(translator: Any, contexts: list[list[str]], beams: int, tokens: int) -> float:
    """Seconds of one batch in which no hypothesis ends early."""
    begin = time.perf_counter()
    results = translator.translate_batch(
        contexts, beam_size=beams, min_decoding_length=tokens, max_decoding_length=tokens
    )
    taken = time.perf_counter() - begin
    lengths = {len(hypothesis) for result in results for hypothesis in result.hypotheses}
    if lengths != {tokens}:
        raise RuntimeError(f"asked for {tokens} tokens, CTranslate2 gave {sorted(lengths)}")
    return taken


def main(argv: Sequence[str] | None = None) -> int:
    """Convert or serve."""
    parser = argparse.ArgumentParser(prog="python -m bench.ctranslate2_peer", description=__doc__)
    parser.add_argument("task", choices=("convert", "serve"))
    parser.add_argument("directory", type=Path, help="a Hugging Face directory to convert, or a converted one to serve")
    parser.add_argument("--precision", choices=PRECISIONS, default="int8")
    parser.add_argument("--threads", type=int, default=2, help="threads of the one batch (serve; default 2)")
    parser.add_argument("--to", type=Path, help="directory to write (convert)")
    chosen = parser.parse_args(argv)
    if chosen.task == "serve":
        serve(chosen.directory, chosen.precision, chosen.threads)
    elif chosen.to is None:
        parser.error("convert needs --to")
    else:
        convert(chosen.directory, chosen.precision, chosen.to)
    return 0


if __name__ == "__main__":
    sys.exit(main())
