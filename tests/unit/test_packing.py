"""Attention of packed rows by plain products."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from expunge.model import packing


def states(heads: int, groups: int, dtype: torch.dtype, tokens: int = 12) -> list[torch.Tensor]:
    torch.manual_seed(0)
    shapes = [(1, own, tokens, 8) for own in (heads, heads // groups, heads // groups)]
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("scaling", [None, 0.1])
def test_plain_products_are_causal_attention(groups: int, scaling: float | None) -> None:
    own = states(4, groups, torch.float64)
    layer: Any = SimpleNamespace(is_causal=True, num_key_value_groups=groups)
    found = packing.attend_plainly(*own, scaling)
    right, _ = sdpa_attention_forward(layer, *own, None, scaling=scaling)
    torch.testing.assert_close(found, right)
    weights = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), own),
        torch.autograd.grad((right * weights).sum(), own),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("dtype", "length", "asked", "plain"),
    [
        (torch.bfloat16, 12, {}, True),
        (torch.float32, 12, {}, False),
        (torch.bfloat16, packing.PLAIN_LENGTH + 1, {}, False),
        (torch.bfloat16, 12, {"is_causal": False}, False),
        (torch.bfloat16, 12, {"position_bias": torch.zeros(1, 4, 32, 32)}, False),
    ],
)
def test_only_short_causal_rows_in_bfloat16_go_by_plain_products(
    dtype: torch.dtype, length: int, asked: dict[str, Any], plain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []
    monkeypatch.setattr(packing, "attend_plainly", lambda *own: taken.append(1) or own[0].transpose(1, 2))
    layer: Any = SimpleNamespace(is_causal=True, num_key_value_groups=1)
    packing._attend_by_row(layer, *states(4, 1, dtype, length), None, row_lengths=(length,), **asked)
    assert bool(taken) == plain
