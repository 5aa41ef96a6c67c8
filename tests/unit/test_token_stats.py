"""Log-probability, hit and moments of each target against the plain formulas, in fp64 and within an error budget."""

import math

import pytest
import torch

from expunge.kernels import Head, plain_token_stats, token_logps, token_stats
from expunge.kernels import head as head_module

BUDGET = 1.5
"""The error against fp64 may exceed that of the plain same-dtype formula by this factor."""
KINDS = {"plain": {}, "bias": {"bias": True}, "scaled": {"scale": 0.25}, "capped": {"softcap": 3.0, "bias": True}}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(head_module, "CHUNK_TOKENS", 7)
    monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", {"cpu": 64})


def make(kind="plain", dtype=torch.float64, tokens=23, vocab=61, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    options = dict(KINDS[kind])
    bias = normal(vocab).to(dtype) if options.pop("bias", False) else None
    head = Head((normal(vocab, 12) * spread).to(dtype), bias, **options)
    return head, normal(tokens, 12).to(dtype), torch.randint(0, vocab, (tokens,), generator=generator)


@pytest.mark.parametrize("tokens", [0, 1, 6, 7, 8, 50])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_plain_formulas_in_fp64(kind, tokens):
    head, hidden, targets = make(kind, tokens=tokens)
    for ours, plain in zip(token_stats(hidden, head, targets), plain_token_stats(hidden, head, targets), strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)


def test_what_is_computed_written_out():
    logits = torch.tensor([[1.0, 3.0, 0.5, 3.0]], dtype=torch.float64)
    for target, hit in ((0, False), (1, True), (2, False), (3, False)):  # of equal ones argmax takes the first
        stats = token_stats(logits, Head(None), torch.tensor([target]))
        norm = sum(math.exp(z) for z in logits[0].tolist())
        logp = [math.log(math.exp(z) / norm) for z in logits[0].tolist()]
        mean = sum(math.exp(value) * value for value in logp)
        assert stats.logps.item() == pytest.approx(logp[target])
        assert stats.hits.item() is hit
        assert stats.mean_logp.item() == pytest.approx(mean)
        assert stats.var_logp.item() == pytest.approx(sum(math.exp(value) * (value - mean) ** 2 for value in logp))


@pytest.mark.parametrize("spread", [0.1, 1.0, 10.0, 100.0])
@pytest.mark.parametrize("kind", KINDS)
def test_error_stays_within_the_budget(kind, spread):
    head, hidden, targets = make(kind, torch.float32, tokens=400, vocab=3001, spread=spread)
    exact = plain_token_stats(
        hidden.double(),
        Head(head.weight.double(), None if head.bias is None else head.bias.double(), head.scale, head.softcap),
        targets,
    )
    ours, plain = token_stats(hidden, head, targets), plain_token_stats(hidden, head, targets)
    for name in ("logps", "mean_logp", "var_logp"):
        truth = getattr(exact, name)
        error, allowed = ((getattr(stats, name) - truth).abs().max() for stats in (ours, plain))
        tiny = 4 * torch.finfo(torch.float32).eps * max(1.0, truth.abs().max())
        assert error <= max(BUDGET * allowed, tiny), name
    assert torch.equal(ours.hits, plain.hits)


@pytest.mark.parametrize("size", [1e2, 1e4, 1e30])
def test_huge_logits_stay_finite(size):
    logits = torch.tensor([[size, 0.0, -size], [-size, size, size]])
    stats = token_stats(logits, Head(None), torch.tensor([0, 1]))
    assert stats.logps.tolist() == pytest.approx([0.0, -math.log(2)])
    assert stats.mean_logp.tolist() == pytest.approx([0.0, -math.log(2)])
    assert stats.var_logp.tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
    assert stats.hits.tolist() == [True, True]  # the first of the two largest


@pytest.mark.parametrize("masked", [-math.inf, torch.finfo(torch.float32).min])
def test_tokens_that_a_model_rules_out_do_not_count(masked):
    logits = torch.randn(9, 40, generator=torch.Generator().manual_seed(1))
    wide = torch.cat([logits, torch.full((9, 5), masked)], dim=1)
    targets = torch.arange(9)
    for ours, without in zip(
        token_stats(wide, Head(None), targets), token_stats(logits, Head(None), targets), strict=True
    ):
        torch.testing.assert_close(ours, without)


def test_a_confident_model_keeps_its_variance():
    logits = torch.zeros(1, 50)
    logits[0, 3] = 18.0  # p = 1 - 7e-7: sum p (log p)^2 - mu^2 in fp32 would keep few digits of it
    exact = plain_token_stats(logits.double(), Head(None), torch.tensor([3]))
    ours = token_stats(logits, Head(None), torch.tensor([3]))
    assert ours.var_logp.item() == pytest.approx(exact.var_logp.item(), rel=1e-3)
    assert ours.mean_logp.item() == pytest.approx(exact.mean_logp.item(), abs=1e-7)


def test_given_logits_are_left_as_they_are():
    logits = torch.randn(5, 9, generator=torch.Generator().manual_seed(2))
    before = logits.clone()
    token_stats(logits, Head(None), torch.arange(5))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_agrees_with_token_logps_in_every_dtype(dtype):
    head, hidden, targets = make(dtype=dtype)
    stats = token_stats(hidden, head, targets)
    expected = token_logps(hidden, head, targets)
    assert stats.logps.dtype == stats.var_logp.dtype == expected.dtype
    assert stats.hits.dtype == torch.bool
    torch.testing.assert_close(stats.logps, expected)


def test_takes_no_gradient():
    head, hidden, targets = make()
    assert not token_stats(hidden.requires_grad_(), head, targets).logps.requires_grad
