"""Tokenizers that have more tokens than their model, or fewer: served, and only what cannot be computed is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from transformers import BartForConditionalGeneration, BertTokenizer

from bench.processes import ServiceProcess, running, start
from checkpoint_import import ImportOptions, import_checkpoint
from generator_svc.commands import Document, OpenCommand
from generator_svc.contexts import build_contexts, context_text
from generator_svc.text import Codec, load_codec
from ragserve.checkpoint import RagSettings
from ragserve.errors import FailedPreconditionError, InvalidInputError
from ragserve.serving.status import error_from_rpc
from ragserve.v1 import generator_pb2, orchestrator_pb2
from retriever_svc.build import BuildOptions, build_knowledge_base
from retriever_svc.splitting import SplitOptions
from tests.system.harness import stub_of
from tests.tiny import (
    bart_tokenizer,
    save_generator,
    save_question_encoder,
    tiny_passages,
    write_jsonl,
)

N_TOKENS = len(bart_tokenizer())
HOLDS = "holds '<mask>', a token that the generator's tokenizer has and its model does not"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its generator has the shape of bart-large-cnn; a token was added to the tokenizer of its encoder alone."""
    directory = tmp_path_factory.mktemp("beyond")
    generator = save_generator(directory / "bart", "bart", vocab_size=N_TOKENS - 1)
    encoder = save_question_encoder(directory / "dpr")
    added = BertTokenizer.from_pretrained(encoder)
    added.add_tokens(["[place]"])
    added.save_pretrained(encoder)
    return import_checkpoint(generator, directory / "model", ImportOptions(question_encoder=encoder)).directory


@pytest.fixture(scope="module")
def retriever(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    work = tmp_path_factory.mktemp("retriever")
    source = write_jsonl(work / "passages.jsonl", tiny_passages(6, max_words=8))
    with source.open("a") as file:
        file.write(json.dumps({"id": "masked", "text": "the <mask> tower"}) + "\n")
    build_knowledge_base(source, work / "kb", model)
    with running(process := start("retriever_svc", {"model": model, "knowledge": work / "kb", "threads": 1}, work)):
        yield process


@pytest.fixture(scope="module")
def rag(model: Path, retriever: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """An orchestrator with both services behind it."""
    work = tmp_path_factory.mktemp("services")
    generator = start("generator_svc", {"model": model, "threads": 1}, work)
    targets = {"retriever": retriever.target, "generator": f"ipv4:{generator.target}"}
    orchestrator = start("orchestrator", targets, work)
    with running(generator, orchestrator):
        yield orchestrator


def cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from ragserve_cli.main import main; main()", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def refused(call: object, request: object) -> InvalidInputError:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=60)  # type: ignore[operator]
    error = error_from_rpc(caught.value)
    assert isinstance(error, InvalidInputError)
    return error


def test_other_texts_are_answered_and_the_token_is_named(rag: ServiceProcess) -> None:
    stub = stub_of(rag.target)
    document = generator_pb2.Document(title="Great River", text="it is long")
    options = orchestrator_pb2.GenerationOptions(max_length=6)
    answered = stub.Generate(orchestrator_pb2.GenerateRequest(question="who?", options=options), timeout=60)
    assert answered.hypotheses
    for question, title, text, field, said in (
        ("who <mask>?", "Great River", "it is long", "question", f"question {HOLDS}"),
        ("who?", "The <mask>", "it", "documents", f"the title of the document titled 'The <mask>' {HOLDS}"),
        ("who?", "Moon", "a <mask>", "documents", f"the text of the document titled 'Moon' {HOLDS}"),
    ):
        document = generator_pb2.Document(title=title, text=text)
        request = orchestrator_pb2.GenerateRequest(question=question, documents=[document], options=options)
        error = refused(stub.Generate, request)
        assert (error.field, error.message[: len(said)]) == (field, said)
    request = orchestrator_pb2.RagServiceScoreRequest(question="who?", answer="the <mask>", documents=[document])
    request.documents[0].text = "it is long"
    error = refused(stub.Score, request)
    assert (error.field, error.message.startswith(f"answer {HOLDS}")) == ("answer", True)
    error = refused(stub.Generate, orchestrator_pb2.GenerateRequest(question="which [place]?", options=options))
    assert error.field == "question"
    assert error.message.startswith("question holds '[place]', a token that the encoder's tokenizer has")


def test_a_retrieved_passage_is_read_without_the_token(rag: ServiceProcess) -> None:
    stub = stub_of(rag.target)
    options = orchestrator_pb2.GenerationOptions(max_length=6)
    request = orchestrator_pb2.GenerateRequest(question="tower?", n_docs=7, options=options)
    warning = (
        "The generator read passage 'masked' without '<mask>', a token that its tokenizer has and its model does not."
    )
    answered = stub.Generate(request, timeout=60)
    assert "masked" in [each.passage.id for each in answered.passages]
    assert list(answered.warnings).count(warning) == 1
    score = orchestrator_pb2.RagServiceScoreRequest(question="tower?", answer="it", n_docs=7)
    assert list(stub.Score(score, timeout=60).warnings).count(warning) == 1
    request.question = "the <mask> tower?"
    error = refused(stub.Generate, request)
    assert (error.field, error.message[: len(HOLDS) + 9]) == ("question", f"question {HOLDS}")


def test_what_is_left_of_such_a_context() -> None:
    """The ids of Hugging Face's tokenizer, without the one that the model has no row for."""
    codec = Codec(bart_tokenizer(), N_TOKENS - 1)
    documents = (Document("Moon", "a <mask> in <mask> night"), Document("Great River", "it is long"))
    asked = OpenCommand("who?", documents, "token", 4, skip_unknown_tokens=True)
    masked, plain = build_contexts(asked, RagSettings(), codec, 50)
    whole = bart_tokenizer()(context_text("Moon / a <mask> in <mask> night", "who?", RagSettings()))["input_ids"]
    assert max(whole) == N_TOKENS - 1
    assert list(masked.token_ids) == [each for each in whole if each < N_TOKENS - 1]
    assert (masked.unknown_token, plain.unknown_token) == ("<mask>", "")


def test_passages_with_such_a_token_are_named_at_the_build(model: Path, tmp_path: Path) -> None:
    passages = tiny_passages(3, max_words=8)
    rows = [*map(vars, passages), {"id": "at-fault", "title": "Great River", "text": "in [place] it is long"}]
    source = tmp_path / "passages.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = rf"^{source}:4: column 'text' holds '\[place\]', a token that the encoder's tokenizer has.*skip_bad_rows"
    for split in (SplitOptions(), SplitOptions("none")):
        with pytest.raises(InvalidInputError, match=said):
            build_knowledge_base(source, tmp_path / "kb", model, build=BuildOptions(split=split.split))
    notes: list[str] = []
    build = BuildOptions(skip_bad_rows=True, notify=notes.append)
    assert build_knowledge_base(source, tmp_path / "kb", model, build=build).passages == 3
    assert notes[0].startswith(f"skipped 1 of 4 rows:\n  {source}:4: column 'text' holds '[place]'")


def test_what_the_encoder_does_not_read_or_encode_may_hold_it(model: Path, tmp_path: Path) -> None:
    source = tmp_path / "passages.jsonl"
    source.write_text(json.dumps({"id": "long", "text": "river " * 600 + "[place]"}) + "\n")
    assert build_knowledge_base(source, tmp_path / "whole", model, build=BuildOptions(split="none")).passages == 1
    source.write_text(json.dumps({"id": "given", "text": "in [place]"}) + "\n")
    np.save(tmp_path / "vectors.npy", np.ones((1, 32), np.float32))
    build = BuildOptions(embeddings=(tmp_path / "vectors.npy",))
    assert build_knowledge_base(source, tmp_path / "given", model, build=build).passages == 1


def test_passages_with_such_a_token_are_named_when_they_are_added(retriever: ServiceProcess, tmp_path: Path) -> None:
    rows = [{"id": "a1", "text": "a river"}, {"id": "a2", "text": "in [place]"}, {"id": "a3", "text": "a moon"}]
    source = tmp_path / "passages.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for split in ([], ["--split", "none"]):
        add = ["kb", "add", str(source), "--retriever", retriever.target, *split]
        refused_all = cli(*add)
        assert f"{source}:2: column 'text' holds '[place]'" in refused_all.stderr
        assert refused_all.returncode != 0
        skipped = cli(*add, "--skip-bad-rows")
        assert f"skipped a row: {source}:2: column 'text' holds '[place]'" in skipped.stderr
        assert skipped.returncode == 0, skipped.stderr


def test_a_model_with_rows_that_no_token_has(tmp_path: Path) -> None:
    """As T5's 28 further rows: transformers can generate them, and they are no text."""
    source = save_generator(tmp_path / "bart", "bart", vocab_size=N_TOKENS + 7)
    encoder = save_question_encoder(tmp_path / "dpr")
    made = import_checkpoint(source, tmp_path / "model", ImportOptions(question_encoder=encoder))
    codec = load_codec(made.directory / "generator", N_TOKENS + 7)
    ids = [*bart_tokenizer()("the moon", add_special_tokens=False)["input_ids"], N_TOKENS + 3, 2]
    assert codec.render(ids).text == bart_tokenizer().decode(ids, skip_special_tokens=True) == "the moon"
    assert codec.render([N_TOKENS + 3]).text == bart_tokenizer().decode([N_TOKENS + 3]) == ""


def test_other_models_tokenizers_are_refused(tmp_path: Path) -> None:
    encoder = save_question_encoder(tmp_path / "dpr")
    generator = save_generator(tmp_path / "bart", "bart", vocab_size=N_TOKENS - 2)
    message = "another model's tokenizer .1 token of its vocabulary"
    with pytest.raises(FailedPreconditionError, match=message) as caught:
        import_checkpoint(generator, tmp_path / "model", ImportOptions(question_encoder=encoder))
    assert str(generator) in caught.value.message


def test_special_tokens_that_disagree_are_a_warning(tmp_path: Path) -> None:
    encoder = save_question_encoder(tmp_path / "dpr")
    generator = save_generator(tmp_path / "bart", "bart", eos_token_id=5)
    made = import_checkpoint(generator, tmp_path / "model", ImportOptions(question_encoder=encoder))
    assert "eos_token has the id 2, and the model's configuration says 5" in "\n".join(made.warnings)


def test_the_reference_cannot_read_such_a_token(model: Path) -> None:
    """transformers fails with an index error where the text is refused here."""
    reference = BartForConditionalGeneration.from_pretrained(model / "generator")
    ids = bart_tokenizer()("a <mask>", return_tensors="pt")["input_ids"]
    with pytest.raises(IndexError), torch.no_grad():
        reference.generate(ids, max_length=4)
