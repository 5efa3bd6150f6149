from __future__ import annotations

import itertools
import math

import pytest
import torch

from tests import tiny
from training.loss import document_loss, rag_token_loss, reader_loss, token_log_probs


def test_equals_the_sum_over_documents_written_out() -> None:
    generator = torch.Generator().manual_seed(0)
    n_questions, n_docs, n_tokens, vocab = 3, 4, 5, 7
    logits = torch.randn(n_questions, n_docs, n_tokens, vocab, generator=generator)
    targets = torch.randint(vocab, (n_questions, n_tokens), generator=generator)
    priors = torch.randn(n_questions, n_docs, generator=generator).softmax(-1)
    lengths = [5, 2, 3]
    mask = torch.tensor([[position < length for position in range(n_tokens)] for length in lengths])

    expected = 0.0
    for question, length in enumerate(lengths):
        for position in range(length):
            probabilities = logits[question, :, position].softmax(-1)[:, targets[question, position]]
            expected -= math.log(sum(float(priors[question, z] * probabilities[z]) for z in range(n_docs)))

    rows = targets.repeat_interleave(n_docs, 0)
    log_probs = token_log_probs(logits.flatten(0, 1), rows).view(n_questions, n_docs, n_tokens)
    assert rag_token_loss(log_probs, priors.log(), mask).item() == pytest.approx(expected, rel=1e-5)


def test_probabilities_of_all_answers_add_up_to_one() -> None:
    vocab, n_tokens = 3, 2
    logits = torch.randn(2, n_tokens, vocab, generator=torch.Generator().manual_seed(1))
    log_priors = torch.tensor([[0.3, 0.7]]).log()
    total = 0.0
    for answer in itertools.product(range(vocab), repeat=n_tokens):
        log_probs = token_log_probs(logits, torch.tensor([answer, answer])).unsqueeze(0)
        total += math.exp(-rag_token_loss(log_probs, log_priors, torch.ones(1, n_tokens)).item())
    assert total == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("family", ["bart", "t5"])
def test_equals_the_loss_of_transformers(family: str) -> None:
    model = tiny.tiny_rag(family, "rag-token")
    tokenizer = tiny.generator_tokenizer(family)
    contexts = tokenizer(
        [f"{passage.title} / {passage.text} // who is it" for passage in tiny.tiny_passages(6)],
        return_tensors="pt",
        padding=True,
    )
    labels = tokenizer(["one answer", "a longer answer than that"], return_tensors="pt", padding=True)["input_ids"]
    pad = model.config.generator.pad_token_id
    scores = torch.tensor([[0.4, 0.1, -0.3], [1.0, 0.9, 0.2]])
    rows = labels.repeat_interleave(3, 0)
    start = torch.full((len(rows), 1), model.config.generator.decoder_start_token_id)
    with torch.no_grad():
        loss = model(
            context_input_ids=contexts["input_ids"],
            context_attention_mask=contexts["attention_mask"],
            doc_scores=scores,
            labels=torch.cat([start[::3], labels], 1),  # it predicts each from the one before
            n_docs=3,
            reduce_loss=True,
        ).loss
        logits = model.generator(
            input_ids=contexts["input_ids"],
            attention_mask=contexts["attention_mask"],
            decoder_input_ids=torch.cat([start, rows[:, :-1]], 1),
        ).logits
    log_probs = token_log_probs(logits, rows).view(2, 3, -1)
    ours = rag_token_loss(log_probs, scores.log_softmax(-1), labels != pad)
    assert ours.item() == pytest.approx(loss.item(), abs=1e-4)


def test_with_one_document_it_is_the_readers_loss() -> None:
    log_probs = -torch.rand(4, 1, 6, generator=torch.Generator().manual_seed(2))
    mask = torch.ones(4, 6)
    ours = rag_token_loss(log_probs, torch.zeros(4, 1), mask)
    assert ours.item() == pytest.approx(reader_loss(log_probs[:, 0], mask).item(), rel=1e-6)


def test_a_document_that_is_sure_of_another_answer_costs_by_itself() -> None:
    mask = torch.ones(1, 2)
    right, wrong = [-0.1, -0.2], [-9.0, -8.0]
    log_probs = torch.tensor([[right, wrong]])
    assert document_loss(log_probs, mask).item() == pytest.approx(0.5 * (0.3 + 17.0))
    sure = torch.tensor([[0.99, 0.01]]).log()
    assert rag_token_loss(log_probs, sure, mask).item() == pytest.approx(0.32, abs=0.01)
