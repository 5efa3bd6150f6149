"""An untrained generator beside a retriever of another model: it is served, and log and replies say what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

from bench.processes import ServiceProcess, running
from checkpoint_import import ImportOptions, import_checkpoint
from ragserve.v1 import orchestrator_pb2
from tests.system.cases import FAMILIES
from tests.system.harness import SEQUENCE, TOKEN, Launcher, Stack, stub_of
from tests.tiny import bart_tokenizer, save_question_encoder

FAMILY = FAMILIES[0]
UNTRAINED = "The weights of the generator look untrained"
OTHER_ENCODER = "The generator was imported with another query encoder"
EMPTY = "The answer is empty: the generator ends it at the first token. Check that the generator is trained"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BART as a configuration makes it, which always ends at once, and an encoder of its own."""
    directory = tmp_path_factory.mktemp("untrained")
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    sizes |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "forced_eos_token_id": None}
    torch.manual_seed(0)
    bart = BartForConditionalGeneration(BartConfig(vocab_size=len(bart_tokenizer()), **sizes))
    bart.final_logits_bias[0, bart.config.eos_token_id] = 100.0
    bart.save_pretrained(directory / "bart")
    bart_tokenizer().save_pretrained(directory / "bart")
    encoder = save_question_encoder(directory / "dpr", seed=9)
    return import_checkpoint(directory / "bart", directory / "model", ImportOptions(question_encoder=encoder)).directory


@pytest.fixture(scope="module")
def rag(model: Path, stack: Stack, launcher: Launcher) -> Iterator[tuple[ServiceProcess, ServiceProcess]]:
    """The generator, and an orchestrator between it and the stack's retriever."""
    assets = replace(launcher.assets, models={FAMILY: model})
    generator = Launcher(assets, launcher.logs).generator()
    orchestrator = launcher.orchestrator(stack.retriever.target, [generator.target])
    with running(generator, orchestrator):
        yield generator, orchestrator


def test_replies_and_logs_say_what_is_wrong(rag: tuple[ServiceProcess, ServiceProcess]) -> None:
    generator, orchestrator = rag
    assert UNTRAINED in generator.log_text()
    stub = stub_of(orchestrator.target)
    for mode in (TOKEN, SEQUENCE):
        options = orchestrator_pb2.GenerationOptions(mode=mode, max_length=8)
        request = orchestrator_pb2.GenerateRequest(question="who was born in 1960?", n_docs=2, options=options)
        reply = stub.Generate(request, timeout=60)
        assert reply.hypotheses[0].text == ""
        for said, found in zip((UNTRAINED, OTHER_ENCODER, EMPTY), reply.warnings, strict=True):
            assert found.startswith(said)
        streamed = stub.GenerateStream(orchestrator_pb2.GenerateStreamRequest(request=request), timeout=60)
        (last,) = [event.result for event in streamed if event.HasField("result")]
        assert list(last.warnings) == list(reply.warnings)
    log = orchestrator.log_text()
    assert (log.count(UNTRAINED), log.count(OTHER_ENCODER)) == (1, 1)


def test_parts_that_belong_together_get_no_warning(stack: Stack) -> None:
    for family in FAMILIES:
        options = orchestrator_pb2.GenerationOptions(max_length=8, min_length=4)
        request = orchestrator_pb2.GenerateRequest(question="who was born in 1960?", n_docs=2, options=options)
        assert list(stack.generate(family, request).warnings) == []
    assert "look untrained" not in "".join(process.log_text() for process in stack.generators.values())
