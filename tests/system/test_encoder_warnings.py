"""A setting of an encoder that the import ignores is named by the import, by the retriever and in every reply."""

from __future__ import annotations

from pathlib import Path

from bench.processes import running, start
from checkpoint_import import ImportOptions, import_checkpoint
from ragserve.v1 import orchestrator_pb2
from retriever_svc.build import build_knowledge_base
from retriever_svc.search import search_offline
from tests.checkpoint_import.test_encoder_styles import save
from tests.checkpoint_import.test_sentence_transformers import add_modules, add_settings
from tests.system.harness import stub_of
from tests.tiny import save_generator, tiny_passages, write_jsonl


def test_an_ignored_setting_of_the_encoder_reaches_replies(tmp_path: Path) -> None:
    save(tmp_path / "hf", "bert")
    add_modules(tmp_path / "hf", {"Pooling": {"pooling_mode": "mean"}})
    add_settings(tmp_path / "hf", truncate_dim=16)
    generator = save_generator(tmp_path / "bart", "bart")
    made = import_checkpoint(generator, tmp_path / "model", ImportOptions(question_encoder=tmp_path / "hf"))
    (warning,) = made.warnings
    assert "the key 'truncate_dim' is not known and is ignored" in warning
    model, knowledge = made.directory, tmp_path / "kb"
    build_knowledge_base(write_jsonl(tmp_path / "p.jsonl", tiny_passages(6, max_words=8)), knowledge, model)
    assert search_offline(model, knowledge, "who?", 2)[1] == (warning,)

    retriever = start("retriever_svc", {"model": model, "knowledge": knowledge, "threads": 1}, tmp_path)
    serving = start("generator_svc", {"model": model, "threads": 1}, tmp_path)
    targets = {"retriever": retriever.target, "generator": f"ipv4:{serving.target}"}
    with running(retriever, serving, orchestrator := start("orchestrator", targets, tmp_path)):
        stub = stub_of(orchestrator.target)
        asked = orchestrator_pb2.RagServiceRetrieveRequest(question="who?", n_docs=2)
        assert list(stub.Retrieve(asked, timeout=60).warnings) == [warning]
        options = orchestrator_pb2.GenerationOptions(max_length=6)
        request = orchestrator_pb2.GenerateRequest(question="who?", n_docs=2, options=options)
        assert warning in stub.Generate(request, timeout=60).warnings
        score = orchestrator_pb2.RagServiceScoreRequest(question="who?", answer="it", n_docs=2)
        assert list(stub.Score(score, timeout=60).warnings).count(warning) == 1
        assert warning in retriever.log_text()
