from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from generator_svc.kernels import native
from generator_svc.models.linear import (
    ACTIVATIONS,
    FINE_WEIGHT_LEVELS,
    WEIGHT_LEVELS,
    Int8Linear,
    Int8Torch,
    PlainLinear,
    quantize_weight,
)

pytestmark = pytest.mark.skipif(native.library() is None, reason="the kernels need a C compiler and AVX2")
HEADS, DIM = 3, 16
LEVELS = {False: WEIGHT_LEVELS, True: FINE_WEIGHT_LEVELS}  # of weights


@pytest.fixture(params=[False, True], ids=["avx2", "vnni"])
def instructions(request: pytest.FixtureRequest) -> Iterator[None]:
    """Products with either set of instructions, where the processor has both."""
    if native.library().choose_vnni(request.param) != request.param:
        pytest.skip("no AVX-512 VNNI here")
    yield
    native.library().choose_vnni(True)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize(("out", "width"), [(64, 32), (50, 44), (17, 9), (7, 3), (256, 1024)])
@pytest.mark.parametrize("activation", native.ACTIVATIONS)
@pytest.mark.parametrize("fine", [False, True])
def test_the_int8_kernel_computes_what_torch_computes(out: int, width: int, activation: str, fine: bool) -> None:
    torch.manual_seed(out)
    weight, scale = quantize_weight(torch.randn(out, width), LEVELS[fine])
    for rows in range(1, 10):
        x, bias, residual = torch.randn(rows, width), torch.randn(out), torch.randn(rows, out)
        for own_bias, more in ((None, None), (bias, None), (bias, residual)):
            ours = native.Int8Product(weight, scale, own_bias, activation, fine=fine)(x, more)
            theirs = Int8Torch(weight, scale, own_bias, activation, fine=fine)(x, more)
            torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_int8_is_near_float32(activation: str) -> None:
    torch.manual_seed(0)
    weight, bias, x, residual = torch.randn(96, 256), torch.randn(96), torch.randn(40, 256), torch.randn(40, 96)
    exact = PlainLinear(weight, bias, activation)(x, residual)
    error = (Int8Linear(weight, bias, activation)(x, residual) - exact).norm() / exact.norm()
    assert 0 < error < 0.05
    fine = (Int8Linear(weight, bias, activation, fine=True)(x, residual) - exact).norm() / exact.norm()
    assert 0 < fine < 0.75 * error


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("activation", native.ACTIVATIONS)
def test_activations_equal_float64_near_and_far_from_zero(activation: str) -> None:
    """The weight is zero and the inputs are the bias, so what is activated is known to the last bit."""
    inputs = torch.cat([torch.linspace(-12, 12, 1501), torch.tensor([-1e30, -200.0, -89.0, 0.0, 89.0, 200.0, 1e30])])
    product = native.Int8Product(
        torch.zeros(len(inputs), 8, dtype=torch.int8), torch.ones(len(inputs)), inputs, activation
    )
    exact = ACTIVATIONS[activation](inputs.double())
    torch.testing.assert_close(product(torch.ones(1, 8))[0].double(), exact, atol=3e-7, rtol=1e-6)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("fine", [False, True])
def test_nothing_saturates_at_the_extremes(fine: bool) -> None:
    levels = LEVELS[fine]
    weight = torch.full((16, 4096), -levels, dtype=torch.int8)
    weight[::2] = levels
    x = torch.ones(3, 4096)
    x[:, :: native.FINE_GROUP] = 0  # so that every other input is the highest level
    y = native.Int8Product(weight, torch.ones(16), None, "none", fine=fine)(x)
    expected = levels * (4096.0 - 4096 / native.FINE_GROUP) * torch.tensor([1.0, -1.0]).repeat(8)
    torch.testing.assert_close(y, expected.expand(3, -1), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("out", "width"), [(16, 8), (50, 44), (530, 300), (1024, 128)])
@pytest.mark.parametrize(("rows", "activation"), [*zip((1, 2, 5, 6, 7, 13, 23), native.ACTIVATIONS, strict=True)])
@pytest.mark.parametrize("fine", [False, True])
def test_both_sets_of_instructions_give_the_same_bits(
    out: int, width: int, rows: int, activation: str, fine: bool
) -> None:
    """Whichever of them the weights were laid out for."""
    if not native.library().choose_vnni(True):
        pytest.skip("no AVX-512 VNNI here")
    torch.manual_seed(rows)
    weight, scale = quantize_weight(torch.randn(out, width), LEVELS[fine])
    x, residual, bias = torch.randn(rows, width), torch.randn(rows, out), torch.randn(out)
    results, layouts = [], []
    try:
        for packed_for in (True, False):
            native.library().choose_vnni(packed_for)
            product = native.Int8Product(weight, scale, bias, activation, fine=fine)
            layouts.append(product.beside)
            for run_with in (True, False):
                native.library().choose_vnni(run_with)
                results.append(product(x, residual))
    finally:
        native.library().choose_vnni(True)
    assert layouts == [4, 1]
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("rows", [2, 3, 5, 6, 50])
@pytest.mark.parametrize("fine", [False, True])
def test_a_row_does_not_depend_on_those_beside_it(rows: int, fine: bool) -> None:
    torch.manual_seed(rows)
    product = Int8Linear(torch.randn(80, 64), torch.randn(80), "gelu", fine=fine)
    x = torch.randn(rows, 64) * torch.logspace(-2, 2, rows)[:, None]
    together = product(x)
    for row in range(rows):
        assert torch.equal(product(x[row : row + 1])[0], together[row])


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("place", [0, 7, 8, 12])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_stays_none(place: int, value: float) -> None:
    x = torch.ones(2, 13)
    x[1, place] = value
    y = Int8Linear(torch.randn(20, 13), None, "none")(x)
    assert y[0].isfinite().all()
    assert y[1].isnan().all()


@pytest.mark.usefixtures("instructions")
def test_a_row_of_equal_inputs() -> None:
    weight = torch.randn(24, 40)
    torch.testing.assert_close(
        Int8Linear(weight, None, "none")(torch.full((2, 40), 0.5)), 0.5 * weight.sum(1).expand(2, -1), atol=0.2, rtol=0
    )
    assert torch.equal(Int8Linear(weight, None, "none")(torch.zeros(2, 40)), torch.zeros(2, 24))


@pytest.mark.parametrize("half", [False, True])
def test_cross_attention_equals_torch(half: bool) -> None:
    torch.manual_seed(1)
    tokens, rows = [1, 5, 8, 33, 160], [1, 2, 3, 4, 9]
    documents = [torch.randn(2, HEADS, n, DIM).to(torch.float16 if half else torch.float32) for n in tokens]
    query, scale = torch.randn(sum(rows), HEADS * DIM), DIM**-0.5
    starts = np.cumsum([0, *rows], dtype=np.int64)
    addresses = np.array([document.data_ptr() for document in documents], dtype=np.int64)
    ours = native.cross_attention(query, addresses, np.array(tokens, np.int64), starts, DIM, scale, half=half)
    for document, part, result in zip(documents, query.split(rows), ours.split(rows), strict=True):
        keys, values = document.float()
        stacked = part.view(-1, HEADS, DIM).transpose(0, 1)
        theirs = F.scaled_dot_product_attention(stacked, keys, values, scale=scale)
        torch.testing.assert_close(result, theirs.transpose(0, 1).reshape(part.shape), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_cross_attention_does_not_hide_a_key_that_is_not_finite(value: float, half: bool) -> None:
    for n, token in ((1, 0), (7, 3), (8, 7), (21, 20)):
        documents = torch.randn(2, 2, HEADS, n, DIM).to(torch.float16 if half else torch.float32)
        documents[1, 0, 1, token, 5] = value  # of the second document's second head
        addresses = np.array([document.data_ptr() for document in documents], np.int64)
        starts = np.array([0, 1, 5], np.int64)
        y = native.cross_attention(
            torch.randn(5, HEADS * DIM), addresses, np.full(2, n, np.int64), starts, DIM, 1.0, half=half
        )
        hidden = y.view(5, HEADS, DIM).isnan()
        assert hidden[1:, 1].all()
        assert hidden.sum() == 4 * DIM


def within(qkv: torch.Tensor, lengths: list[int], dim: int, bias: torch.Tensor | None = None) -> torch.Tensor:
    starts = np.cumsum([0, *lengths], dtype=np.int64)
    return native.document_attention(qkv, starts, max(lengths), dim, dim**-0.5, bias)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dim", [8, 24, 64, 72])
def test_document_attention_equals_torch(dim: int, biased: bool) -> None:
    torch.manual_seed(dim)
    lengths = [1, 5, 6, 16, 17, 64, 100]
    qkv = torch.randn(sum(lengths), 3 * HEADS * dim)
    bias = torch.randn(HEADS, max(lengths), max(lengths)) if biased else None
    ours = within(qkv, lengths, dim, bias)
    for n, part, result in zip(lengths, qkv.split(lengths), ours.split(lengths), strict=True):
        query, key, value = part.view(n, 3, HEADS, dim).permute(1, 2, 0, 3)
        mask = None if bias is None else bias[:, :n, :n]
        theirs = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=dim**-0.5)
        torch.testing.assert_close(result, theirs.transpose(0, 1).reshape(n, -1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dim", [8, 64])
def test_document_attention_has_the_same_bits_with_either_set_of_instructions_and_whatever_is_beside(dim: int) -> None:
    torch.manual_seed(dim)
    lengths = [3, 50, 81]
    qkv = torch.randn(sum(lengths), 3 * HEADS * dim) * 4
    together = within(qkv, lengths, dim)
    for n, part, result in zip(lengths, qkv.split(lengths), together.split(lengths), strict=True):
        assert torch.equal(within(part, [n], dim), result)
    native.library().choose_vnni(False)
    try:
        assert torch.equal(within(qkv, lengths, dim), together)
    finally:
        native.library().choose_vnni(True)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("place", [0, 1, 2])
def test_document_attention_does_not_hide_what_is_no_number(place: int) -> None:
    qkv = torch.randn(2 + 7, 3, HEADS, 16)
    qkv[5, place] = math.nan
    y = within(qkv.view(9, -1), [2, 7], 16)
    assert y[:2].isfinite().all()
    assert y[5].isnan().all()
    assert y[2:].isnan().all() == (place > 0)  # a query is its own token's only


@pytest.mark.usefixtures("instructions")
def test_document_attention_with_scores_far_apart() -> None:
    qkv = torch.zeros(9, 3, 1, 8)
    qkv[:, 0], qkv[4, 1], qkv[4, 2] = 1.0, 1e4, 3.0
    torch.testing.assert_close(within(qkv.view(9, -1), [9], 8), torch.full((9, 8), 3.0))


@pytest.mark.parametrize("biased", [False, True])
def test_path_attention_equals_torch(biased: bool) -> None:
    torch.manual_seed(2)
    rng, inner, n_rows, longest = np.random.default_rng(0), HEADS * DIM, 6, 21
    cache, qkv = torch.randn(200, 2 * inner), torch.randn(n_rows, 3 * inner)
    lengths = torch.tensor([1, 2, 7, 8, 9, longest])
    table = torch.from_numpy(rng.permutation(200)[: n_rows * longest].reshape(n_rows, longest).astype(np.int64))
    bias = torch.randn(n_rows, HEADS, 1, longest) if biased else None
    before = cache.clone()
    ours = native.path_attention(qkv, cache, table, lengths, DIM, 0.3, bias)
    for row, length in enumerate(lengths.tolist()):
        path = table[row, :length]
        before[path[-1]] = qkv[row, inner:]
        keys, values = before[path].view(length, 2, HEADS, DIM).permute(1, 2, 0, 3)
        query = qkv[row, :inner].view(HEADS, 1, DIM)
        mask = None if bias is None else bias[row, :, :, :length]
        theirs = F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=0.3)
        torch.testing.assert_close(ours[row], theirs.reshape(-1), atol=1e-5, rtol=1e-5)
    assert torch.equal(cache, before)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_path_attention_does_not_hide_a_key_that_is_not_finite(value: float) -> None:
    cache, qkv = torch.randn(8, 2 * HEADS * DIM), torch.randn(2, 3 * HEADS * DIM)
    cache[5, DIM] = value  # of the second row's path, the second head
    table = torch.tensor([[0, 1, 2], [4, 5, 6]])
    y = native.path_attention(qkv, cache, table, torch.tensor([3, 3]), DIM, 0.3, None)
    hidden = y.view(2, HEADS, DIM).isnan()
    assert hidden[1, 1].all()
    assert hidden.sum() == DIM


def test_scores_far_apart_do_not_overflow() -> None:
    documents = torch.zeros(2, 1, 9, 8)
    documents[0, 0, 4], documents[1, 0, 4] = 1e4, 3.0
    ours = native.cross_attention(
        torch.ones(1, 8), *(np.array(v, np.int64) for v in ([documents.data_ptr()], [9], [0, 1])), 8, 1.0, half=False
    )
    assert torch.equal(ours, torch.full((1, 8), 3.0))


PRIORS = torch.tensor([-0.1, -3.0, -5.0, -100.0, -torch.inf])


def step_logits(vocab: int, spread: float, n_docs: int = 5) -> torch.Tensor:
    """Of three hypotheses; the first token is impossible after the second one, and one row is far from the others."""
    torch.manual_seed(vocab)
    logits = spread * torch.randn(n_docs, 3, vocab) + 20
    if vocab > 1:
        logits[:, 1, 0] = -torch.inf
    logits[n_docs // 2, 2] += 300
    return logits


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("vocab", [1, 7, 16, 513, 50265])
@pytest.mark.parametrize("spread", [0.1, 3.0, 60.0])
@pytest.mark.parametrize("n_docs", [1, 5])
def test_norms_marginals_and_masses_equal_float64(vocab: int, spread: float, n_docs: int) -> None:
    logits = step_logits(vocab, spread, n_docs)
    banned = [(), (vocab - 1, vocab // 2), tuple(range(vocab // 3, vocab - 1))]
    priors = PRIORS[:n_docs]
    scores = native.TokenScores(logits, priors, banned)
    norms = torch.from_numpy(scores.log_norms)
    torch.testing.assert_close(norms.double(), logits.double().logsumexp(-1), atol=1e-5, rtol=2e-7)
    assert torch.equal(native.log_norms(logits), norms)
    expected = (logits + (priors[:, None] - norms)[..., None]).double().logsumexp(0)
    for own, tokens in zip(expected, banned, strict=True):
        own[list(tokens)] = -torch.inf
    torch.testing.assert_close(scores.marginal.double(), expected, atol=2e-6, rtol=2e-7)
    assert torch.equal(scores.marginal.isneginf(), expected.isneginf())
    masses = torch.from_numpy(scores.log_masses).double()
    torch.testing.assert_close(masses, expected.logsumexp(-1), atol=1e-5, rtol=2e-7)


def test_scores_of_a_hypothesis_depend_on_nothing_beside_it() -> None:
    """Neither on other hypotheses, nor on the processor, nor on the number of threads."""
    logits = step_logits(50265, 3.0)
    banned = [(), (3,), (700, 5)]
    scores = native.TokenScores(logits, PRIORS, banned)

    def check(other: native.TokenScores, own: slice) -> None:
        assert np.array_equal(other.log_norms, scores.log_norms[:, own])
        assert torch.equal(other.marginal, scores.marginal[own])
        assert np.array_equal(other.log_masses, scores.log_masses[own])

    for hypothesis in range(3):
        own = slice(hypothesis, hypothesis + 1)
        check(native.TokenScores(logits[:, own], PRIORS, banned[own]), own)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3 - min(threads, 2))
        check(native.TokenScores(logits, PRIORS, banned), slice(None))
        native.library().choose_vnni(False)
        check(native.TokenScores(logits, PRIORS, banned), slice(None))
    finally:
        torch.set_num_threads(threads)
        native.library().choose_vnni(True)


@pytest.mark.parametrize("count", [1, 16, 98, 99, 100, 1024])
@pytest.mark.parametrize("levels", [None, 1, 40])
def test_the_best_tokens_are_those_of_a_stable_sort(count: int, levels: int | None) -> None:
    """99 blocks of tokens have a peak; few `levels` make ties, also at the last place and across blocks."""
    logits = step_logits(50265, 1.0)
    if levels is not None:
        logits = torch.randn(5, 3, levels)[:, :, torch.randint(levels, (50265,))]
    allowed = 20  # of the last hypothesis: there are fewer than asked for
    banned = [(), tuple(range(0, 50265, 2)), tuple(set(range(50265)) - set(range(7, 50000, 2500)))]
    scores = native.TokenScores(logits, PRIORS, banned)
    ids, log_probs = scores.best([2, 0, 1], count)
    for row, hypothesis in enumerate([2, 0, 1]):
        marginal = scores.marginal[hypothesis].numpy()
        best = np.argsort(-marginal, kind="stable")
        expected = best[~np.isin(best, banned[hypothesis])][:count]
        assert ids[row, : len(expected)].tolist() == expected.tolist()
        assert (ids[row, len(expected) :] == -1).all()
        assert len(expected) == (min(count, allowed) if hypothesis == 2 else count)
        shown = logits[:, hypothesis, expected].numpy() - scores.log_norms[:, hypothesis, None]
        assert np.array_equal(log_probs[row, :, : len(expected)], shown)
        assert np.isneginf(log_probs[row, :, len(expected) :]).all()


@pytest.mark.usefixtures("instructions")
def test_norms_of_what_is_no_number() -> None:
    logits = torch.zeros(4, 19)
    logits[0, 17], logits[1, 3], logits[2] = torch.nan, torch.inf, -torch.inf
    norms = native.log_norms(logits)
    assert norms[0].isnan()
    assert norms[1:3].tolist() == [math.inf, -math.inf]
    assert norms[3] == pytest.approx(math.log(19))
