"""Fused log-probabilities and divergences against the plain formulas: exact in fp64, within an error budget below."""

import itertools

import pytest
import torch

from expunge.kernels import Head, plain_token_kl, plain_token_logps, token_logps, token_logps_and_kl
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


@pytest.mark.parametrize("direction", ["reverse", "forward"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_function(kind, direction):
    head, hidden, ref, targets = make(kind, torch.float64, tokens=9)
    targets[4] = -100
    hidden.requires_grad_()
    assert torch.autograd.gradcheck(lambda h: token_logps(h, head, targets), (hidden,))
    assert torch.autograd.gradcheck(lambda h: token_logps_and_kl(h, ref, head, targets, direction), (hidden,))


@pytest.mark.parametrize("tokens", [1, 6, 7, 8, 50])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_plain_formula_in_fp64(kind, tokens):
    head, hidden, ref, targets = make(kind, torch.float64, tokens=tokens)
    targets[::3] = -100
    torch.testing.assert_close(token_logps(hidden, head, targets), plain_token_logps(hidden, head, targets))
    for direction in ("reverse", "forward"):
        logps, kl = token_logps_and_kl(hidden, ref, head, targets, direction)
        torch.testing.assert_close(logps, plain_token_logps(hidden, head, targets))
        torch.testing.assert_close(kl, plain_token_kl(hidden, ref, head, direction))


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
    own = hidden.clone().requires_grad_()
    for direction in ("reverse", "forward"):
        _, kl = token_logps_and_kl(own, hidden, head, targets, direction)
        own.grad = None
        kl.sum().backward()
        assert kl.abs().max() < 1e-6
        assert own.grad.abs().max() < 1e-6


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
