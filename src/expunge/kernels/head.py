"""The frozen vocabulary head: final hidden states -> logits -> values of each token, and gradients all the way back."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from expunge.kernels.rounding import round_rows, wide_linear

CHUNK_ELEMENTS = {"cpu": 2**19, "cuda": 2**26}
"""Size of a (tokens, vocab) block, in elements, at most: on the CPU small enough for the cache."""
CHUNK_TOKENS = 96
"""Fewest tokens in a block, so that matrix products stay efficient under a large vocabulary."""
LOWEST = -1e30
"""Stands for a log-probability of -inf (an entry that the model rules out) where 0 times it has to be 0."""


@dataclass(frozen=True)
class Head:
    """logits = softcap * tanh(scale * (hidden @ weight.T + bias) / softcap), with the parts that the model has.

    The head is frozen: no gradient of its weights is ever computed.

    Attributes:
        weight: `(vocab, hidden)` in the dtype that the matrix product runs in; None when the "hidden states" handed
            over are the model's logits already (the plain path for heads of unknown form).
        bias: `(vocab,)` or None.
        scale: Factor on the logits (Cohere's `logit_scale`, the inverse of Granite's `logits_scaling`).
        softcap: Bound of the logits (Gemma-2's `final_logit_softcapping`) or None.
        block: Bound on the elements of the (tokens, vocab) block that is alive at a time; by device type when None.
    """

    weight: Tensor | None
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    block: int | None = None

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of `hidden` `(num_tokens, hidden)` as `(num_tokens, vocab)`, in fp32 at least."""
        logits = hidden
        if self.weight is not None:
            rows = round_rows(hidden.to(self.weight.dtype))
            logits = wide_linear(rows, self.weight, self.bias)[: hidden.shape[0]]
        if logits.dtype in (torch.bfloat16, torch.float16):
            logits = logits.float()
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is not None:
            logits = self.softcap * torch.tanh(logits / self.softcap)
        return logits

    def grad_hidden(self, grad_logits: Tensor, logits: Tensor) -> Tensor:
        """Gradient of the hidden states, given that of the logits and the logits themselves.

        `logits` is needed for the slope of the soft cap alone; it may be anything when there is none.
        """
        if self.softcap is not None:
            grad_logits = grad_logits * (1 - (logits / self.softcap).square())
        if self.scale != 1.0:
            grad_logits = grad_logits * self.scale
        if self.weight is None:
            return grad_logits
        return (round_rows(grad_logits.to(self.weight.dtype)) @ self.weight)[: grad_logits.shape[0]]

    def vocab_size(self, hidden: Tensor) -> int:
        """Number of logits per token."""
        return (hidden if self.weight is None else self.weight.T).shape[-1]

    def block_on(self, device: torch.device) -> int:
        """Elements of the (tokens, vocab) block that may be alive at a time on a device."""
        return self.block or CHUNK_ELEMENTS[device.type]

    def chunks(self, hidden: Tensor) -> Iterator[slice]:
        """Slices over the tokens of `hidden` such that one block of (tokens, vocab) stays small."""
        size = max(CHUNK_TOKENS, self.block_on(hidden.device) // self.vocab_size(hidden))
        for start in range(0, hidden.shape[0], size):
            yield slice(start, min(start + size, hidden.shape[0]))


Chunk = Callable[[slice, bool], list[Tensor]]
"""Given a slice over the tokens: each value of these, `(rows,)`, and where it is wanted each value's slopes,
`(rows, hidden)`."""


def fused(hidden: Tensor, head: Head, count: int, chunk: Chunk) -> tuple[Tensor, ...]:
    """Values of each token, differentiable in `hidden`, from one pass over the logits, few of which exist at a time.

    A token's values depend on its own hidden state alone and the head takes no gradient, so their slopes
    d value / d hidden are computed while the token's logits exist; the backward pass is one multiplication.

    Args:
        hidden: `(num_tokens, hidden)`, final hidden states.
        head: The frozen head.
        count: Values of a token.
        chunk: Computes them, and their slopes where `hidden` takes a gradient.

    Returns:
        `count` times `(num_tokens,)`, fp32 (fp64 for fp64 input).
    """
    values: tuple[Tensor, ...] = _Fused.apply(hidden, head, count, chunk)  # type: ignore[no-untyped-call]
    return values


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, head: Head, count: int, chunk: Chunk) -> tuple[Tensor, ...]:
        parts, slopes = list(head.chunks(hidden)), ctx.needs_input_grad[0]
        with torch.autocast(hidden.device.type, enabled=False):
            if len(parts) == 1:  # nothing is to be put together
                found = chunk(parts[0], slopes)
            else:
                wide = torch.promote_types(hidden.dtype, torch.float32)
                found = [hidden.new_empty(hidden.shape[0], dtype=wide) for _ in range(count)]
                found += [torch.empty_like(hidden) for _ in range(count) if slopes]
                for rows in parts:
                    for whole, piece in zip(found, chunk(rows, slopes), strict=True):
                        whole[rows] = piece
        ctx.save_for_backward(*(slope.to(hidden.dtype) for slope in found[count:]))
        return tuple(found[:count])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        slopes = ctx.saved_tensors
        parts = (slope * grad[:, None] for slope, grad in zip(slopes, grads, strict=True))
        return reduce(add, parts).to(slopes[0].dtype), None, None, None
