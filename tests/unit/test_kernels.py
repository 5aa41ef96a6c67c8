"""Fused log-probabilities and divergences against the plain formulas: exact in fp64, within an error budget below."""

import itertools

import pytest
import torch

from expunge.kernels import (
    Head,
    plain_target_kl,
    plain_token_kl,
    plain_token_logps,
    token_kl,
    token_logps,
    token_logps_and_kl,
    token_target_kl,
)
from expunge.kernels import head as head_module

BUDGET = 1.5
"""The fused error may exceed the plain same-dtype error by this factor."""
KINDS = {"plain": {}, "bias": {"bias": True}, "scaled": {"scale": 0.25}, "capped": {"softcap": 3.0, "bias": True}}


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(head_module, "CHUNK_TOKENS", 7)
    monkeypatch.setattr(head_module, "CHUNK_ELEMENTS", {"cpu": 64})


def make(kind, dtype, tokens=23, vocab=61, width=12, spread=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    options = dict(KINDS[kind])
    bias = normal(vocab).to(dtype) if options.pop("bias", False) else None
    head = Head((normal(vocab, width) * spread).to(dtype), bias, **options)
    hidden, ref = normal(tokens, width).to(dtype), normal(tokens, width).to(dtype)
    targets = torch.randint(0, vocab, (tokens,), generator=generator)
    return head, hidden, ref, targets


def as64(head):
    return Head(head.weight.double(), None if head.bias is None else head.bias.double(), head.scale, head.softcap)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_function(kind):
    head, hidden, ref, targets = make(kind, torch.float64, tokens=9)
    targets[4] = -100
    hidden.requires_grad_()
    assert torch.autograd.gradcheck(lambda h: token_logps(h, head, targets), (hidden,))
    assert torch.autograd.gradcheck(lambda h: token_kl(h, ref, head), (hidden,))
    assert torch.autograd.gradcheck(lambda h: token_logps_and_kl(h, ref, head, targets), (hidden,))


@pytest.mark.parametrize("tokens", [1, 6, 7, 8, 50])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_plain_formula_in_fp64(kind, tokens):
    head, hidden, ref, targets = make(kind, torch.float64, tokens=tokens)
    targets[::3] = -100
    torch.testing.assert_close(token_logps(hidden, head, targets), plain_token_logps(hidden, head, targets))
    logps, kl = token_logps_and_kl(hidden, ref, head, targets)
    torch.testing.assert_close(logps, plain_token_logps(hidden, head, targets))
    torch.testing.assert_close(kl, plain_token_kl(hidden, ref, head))
    torch.testing.assert_close(token_kl(hidden, ref, head), plain_token_kl(hidden, ref, head))


def test_no_tokens_at_all():
    head, hidden, ref, targets = make("plain", torch.float32)
    none = hidden[:0].requires_grad_()
    logps, kl = token_logps_and_kl(none, ref[:0], head, targets[:0])
    (token_logps(none, head, targets[:0]).sum() + logps.sum() + kl.sum()).backward()
    assert logps.shape == kl.shape == (0,)
    assert none.grad.shape == none.shape


def test_ignored_targets_take_no_gradient_and_count_zero():
    head, hidden, ref, targets = make("capped", torch.float32)
    targets[:] = -100
    hidden.requires_grad_()
    logps = token_logps(hidden, head, targets)
    logps.sum().backward()
    assert not logps.any()
    assert not hidden.grad.any()
    _, kl = token_logps_and_kl(hidden, ref, head, targets)
    assert (kl > 0).all()  # the divergence does not look at targets


def test_kl_of_equal_states_is_zero_with_zero_gradient():
    head, hidden, _, targets = make("scaled", torch.float32)
    states = hidden.clone().requires_grad_()
    _, kl = token_logps_and_kl(states, hidden, head, targets)
    kl.sum().backward()
    assert kl.abs().max() < 1e-6
    assert states.grad.abs().max() < 1e-6


@pytest.mark.parametrize(
    ("dtype", "kind", "spread"),
    list(itertools.product([torch.float32, torch.bfloat16], KINDS, [1e-3, 1.0, 30.0])),
)
def test_error_budget(dtype, kind, spread):
    """Against fp64 truth on the same rounded inputs, values and gradients err at most BUDGET times the plain ones."""
    head, hidden, ref, targets = make(kind, dtype, tokens=200, vocab=301, spread=spread)
    weights = torch.linspace(0.1, 1.0, len(targets))

    def run(fused, dtype64):
        own_head = as64(head) if dtype64 else head
        h = (hidden.double() if dtype64 else hidden).clone().requires_grad_()
        r = ref.double() if dtype64 else ref
        if fused:
            logps, kl = token_logps_and_kl(h, r, own_head, targets)
        else:
            logps, kl = plain_token_logps(h, own_head, targets), plain_token_kl(h, r, own_head)
        (weights * (logps + kl)).sum().backward()
        return torch.stack([logps.double().detach(), kl.double().detach()]), h.grad.double()

    truth, plain, fused = run(False, True), run(False, False), run(True, False)
    for name, exact, naive, ours in zip(("values", "gradient"), truth, plain, fused, strict=True):
        floor = torch.finfo(dtype).eps * exact.abs().max() * 0.1
        assert rms(ours - exact) <= BUDGET * rms(naive - exact) + floor, name


def rms(error):
    return error.square().mean().sqrt()


def test_the_plain_path_takes_logits_as_they_are():
    head, hidden, ref, targets = make("capped", torch.float64)
    logits, ref_logits = head.logits(hidden), head.logits(ref)
    identity = Head(None)
    torch.testing.assert_close(token_logps(logits, identity, targets), token_logps(hidden, head, targets))
    torch.testing.assert_close(
        token_logps_and_kl(logits, ref_logits, identity, targets)[1], plain_token_kl(hidden, ref, head)
    )


def target_nlls(tokens):
    """From a target of nearly 1 to one of nearly 0, fp64."""
    return torch.logspace(-3, 1.2, tokens, dtype=torch.float64)


@pytest.mark.parametrize("nll_weight", [0.0, 2.0])
@pytest.mark.parametrize("tokens", [1, 8, 50])
@pytest.mark.parametrize("kind", KINDS)
def test_target_kl_equals_the_plain_formula_in_fp64(kind, tokens, nll_weight):
    head, hidden, ref, targets = make(kind, torch.float64, tokens=tokens)
    loss = token_target_kl(hidden, ref, head, targets, target_nlls(tokens), nll_weight)
    torch.testing.assert_close(loss, plain_target_kl(hidden, ref, head, targets, target_nlls(tokens), nll_weight))


@pytest.mark.parametrize("nll_weight", [0.0, 2.0])
@pytest.mark.parametrize("kind", KINDS)
def test_target_kl_has_the_gradient_of_the_function(kind, nll_weight):
    head, hidden, ref, targets = make(kind, torch.float64, tokens=9)
    hidden.requires_grad_()
    nlls = target_nlls(9)
    assert torch.autograd.gradcheck(lambda h: token_target_kl(h, ref, head, targets, nlls, nll_weight), (hidden,))


def test_the_huber_loss_goes_on_where_the_divergence_has_all_but_ended():
    """From a probability of .05 to one of .002: a slope of .05 on the logit, with the Huber loss one of nearly 1."""
    logits = torch.tensor([[0.05, 0.95]], dtype=torch.float64).log().requires_grad_()
    ref, nll = torch.tensor([[0.9, 0.1]], dtype=torch.float64).log(), -torch.tensor([0.002], dtype=torch.float64).log()
    slopes = []
    for weight in (0.0, 1.0):
        loss = token_target_kl(logits, ref, Head(None), torch.tensor([0]), nll, weight)
        slopes.append(torch.autograd.grad(loss.sum(), logits)[0][0, 0].item())
    assert slopes[0] == pytest.approx(0.05 - 0.002)
    assert slopes[1] == pytest.approx(0.05 - 0.002 + 0.95)


def test_target_kl_is_the_divergence_from_the_distribution_written_out():
    logits = torch.randn(1, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    ref = torch.tensor([[0.4, 0.1, 0.2, 0.05, 0.1, 0.1, 0.05]], dtype=torch.float64)
    wanted = torch.tensor([0.4, 0.1, 0.25, 0.05, 0.1, 0.1, 0.05], dtype=torch.float64)
    wanted[torch.arange(7) != 2] *= (1 - 0.25) / (1 - 0.2)
    nll = -torch.tensor([0.25], dtype=torch.float64).log()
    kl = token_target_kl(logits, ref.log(), Head(None), torch.tensor([2]), nll)
    torch.testing.assert_close(kl[0], (wanted * (wanted.log() - logits[0].log_softmax(-1))).sum())
    (grad,) = torch.autograd.grad(kl.sum(), logits)
    torch.testing.assert_close(grad[0], logits[0].softmax(-1) - wanted)


@pytest.mark.parametrize("rest", [1e-1, 1e-6, 1e-9])
def test_target_kl_keeps_its_digits_where_the_reference_is_sure(rest):
    """In fp32, with r = 1 - rest: what is left for the others must not drown in 1 - r."""
    generator = torch.Generator().manual_seed(4)
    others = torch.randn(5, 40, dtype=torch.float64, generator=generator).softmax(-1) * rest
    ref = torch.cat([torch.full((5, 1), 1 - rest, dtype=torch.float64), others], -1).log().float()
    policy = (ref.double() + 0.3 * torch.randn(5, 41, dtype=torch.float64, generator=generator)).float()
    targets, nll = torch.zeros(5, dtype=torch.long), torch.tensor([0.01, 0.5, 2.0, 4.0, 9.0])
    logits = policy.clone().requires_grad_()
    kl = token_target_kl(logits, ref, Head(None), targets, nll)
    exact_own = policy.double().requires_grad_()
    exact = plain_target_kl(exact_own, ref.double(), Head(None), targets, nll.double())
    torch.testing.assert_close(kl.double(), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        torch.autograd.grad(kl.sum(), logits)[0].double(), torch.autograd.grad(exact.sum(), exact_own)[0], rtol=1e-4,
        atol=1e-6,
    )  # fmt: skip


def test_at_the_target_there_is_neither_divergence_nor_gradient():
    ref = torch.randn(6, 30, generator=torch.Generator().manual_seed(5)).log_softmax(-1)
    targets = torch.arange(6)
    logits = ref.clone().requires_grad_()
    kl = token_target_kl(logits, ref, Head(None), targets, -ref[targets, targets])
    assert kl.abs().max() < 1e-6
    assert torch.autograd.grad(kl.sum(), logits)[0].abs().max() < 1e-6


def test_entries_that_a_model_rules_out_count_nothing():
    """A vocabulary entry of -inf has no probability: values and gradients are those without it."""
    head, hidden, ref, targets = make("bias", torch.float64, vocab=61)
    targets %= 50
    ruled_out = head.bias.clone()
    ruled_out[50:] = -torch.inf
    wide, narrow = Head(head.weight, ruled_out), Head(head.weight[:50], head.bias[:50])
    nll = target_nlls(len(targets))
    for function in (
        lambda h, w: token_logps(h, w, targets),
        lambda h, w: token_kl(h, ref, w),
        lambda h, w: token_logps_and_kl(h, ref, w, targets)[1],
        lambda h, w: token_target_kl(h, ref, w, targets, nll),
    ):
        found = []
        for lm_head in (wide, narrow):
            states = hidden.clone().requires_grad_()
            value = function(states, lm_head)
            value.sum().backward()
            found.append((value.detach(), states.grad))
        torch.testing.assert_close(*found)


@pytest.mark.cuda
def test_bf16_products_are_not_rounded_before_they_are_widened_on_cuda():
    head, hidden, _, _ = make("bias", torch.bfloat16, tokens=64, vocab=301)
    exact = as64(head).logits(hidden.double())
    logits = Head(head.weight.cuda(), head.bias.cuda()).logits(hidden.cuda()).cpu()
    assert (logits - exact).abs().max() < 1e-4 * exact.abs().max()
