"""A composite checkpoint as `save_pretrained` writes it, imported and served: from the question to the answer.

The reference is transformers alone: its question encoder, its retriever's way to write contexts, its generation.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer
from transformers.models.rag.retrieval_rag import RagRetriever

from ragserve.v1 import generator_pb2, orchestrator_pb2
from tests import tiny
from tests.system.cases import FAMILIES, PAD
from tests.system.harness import SCORE_SCALE, SEQUENCE, TOKEN, Assets, Stack, options_of, passages
from tests.system.oracle import Contexts, Oracle, Search, contexts_of

QUESTIONS = ("Who Built the old Tower of France?", "which RIVER is in the north, and which in the south?")
SEARCHES = {
    family: Search(num_beams=3, max_length=14, min_length=4, bad_words_ids=((PAD[family],),)) for family in FAMILIES
}
N_DOCS = 4
MAX_TOKENS = 48  # shorter than most contexts, so that the question is cut off as Hugging Face does


class HuggingFace:
    """Retrieval by transformers on the passages of the knowledge base."""

    def __init__(self, assets: Assets, family: str, oracle: Oracle) -> None:
        self._oracle = oracle
        self._encoder = oracle.token.question_encoder
        self._tokenizer = AutoTokenizer.from_pretrained(assets.composites[family] / "question_encoder_tokenizer")
        self._passages = passages()
        self._vectors = torch.cat([self._vector(f"{p.title}. {p.text}") for p in self._passages])

    @torch.no_grad()
    def _vector(self, text: str) -> torch.Tensor:
        """`[1, dim]`"""
        return self._encoder(**self._tokenizer(text, return_tensors="pt", truncation=True))[0]

    def retrieve(self, question: str) -> tuple[list[tiny.TinyPassage], list[float]]:
        """Passages and scaled scores, best first."""
        scores = (self._vector(question) @ self._vectors.T)[0]
        best = scores.topk(N_DOCS)
        return [self._passages[int(i)] for i in best.indices], [SCORE_SCALE * float(s) for s in best.values]

    def contexts(self, question: str) -> Contexts:
        """As `RagRetriever` writes them: the question decoded again, cut from the right."""
        found, scores = self.retrieve(question)
        docs = [{"title": [p.title for p in found], "text": [p.text for p in found]}]
        decoded = self._tokenizer.decode(self._tokenizer(question)["input_ids"], skip_special_tokens=True)
        config = SimpleNamespace(title_sep=" / ", doc_sep=" // ", max_combined_length=MAX_TOKENS)
        writer = SimpleNamespace(config=config, generator_tokenizer=self._oracle.tokenizer)
        ids, mask = RagRetriever.postprocess_docs(writer, docs, [decoded], None, N_DOCS, return_tensors="pt")
        return contexts_of(ids, mask, scores)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("question", QUESTIONS)
def test_question_to_answer(
    family: str, question: str, assets: Assets, stack: Stack, oracles: dict[str, Oracle]
) -> None:
    peer = HuggingFace(assets, family, oracles[family])
    found, scores = peer.retrieve(question)
    contexts = peer.contexts(question)
    assert contexts["context_attention_mask"].all(1).any()
    for mode, generate in ((TOKEN, oracles[family].generate_token), (SEQUENCE, oracles[family].generate_sequence)):
        expected = generate(contexts, SEARCHES[family])
        options = options_of(SEARCHES[family], mode)
        options.question_form = orchestrator_pb2.QUESTION_FORM_DECODED
        options.truncation = generator_pb2.TRUNCATION_RIGHT
        options.max_context_tokens = MAX_TOKENS
        request = orchestrator_pb2.GenerateRequest(question=question, n_docs=N_DOCS, options=options)
        response = stack.generate(family, request)
        assert [answer.passage.id for answer in response.passages] == [passage.id for passage in found]
        priors = torch.tensor(scores).softmax(0).tolist()
        assert [answer.prior for answer in response.passages] == pytest.approx(priors, abs=1e-4)
        assert tuple(response.hypotheses[0].token_ids) == expected.token_ids
        assert response.hypotheses[0].log_prob == pytest.approx(expected.log_prob, abs=1e-4)


@pytest.mark.parametrize(("family", "mode"), [("bart", SEQUENCE), ("t5-gated", TOKEN)])
def test_the_wrong_mode_for_a_checkpoint_warns(family: str, mode: int, stack: Stack) -> None:
    trained = TOKEN if mode == SEQUENCE else SEQUENCE
    for asked, warned in ((mode, True), (trained, False)):
        request = orchestrator_pb2.GenerateRequest(question=QUESTIONS[0], options=options_of(SEARCHES[family], asked))
        assert bool(stack.generate(family, request).warnings) == warned
