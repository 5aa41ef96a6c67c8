"""Rows in one sequence on the CPU: each attends to itself alone, as the formula in fp64 says, forward and backward."""

import pytest
import torch
from torch import Tensor

from expunge.model.row_attention import SHORT, attend_by_row, layout

LENGTHS = (5, 7, 40, 33, 64, 31, 1, 100, 3)
WIDTH, SCALE = 16, 0.3


class Layer(torch.nn.Module):
    """What attention reads of a layer."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups


def states(heads: int, key_heads: int, tokens: int, dtype: torch.dtype, values: int = WIDTH) -> list[Tensor]:
    """Queries, keys and values, the last of another width perhaps."""
    chance = torch.Generator().manual_seed(0)
    sizes = (heads, WIDTH), (key_heads, WIDTH), (key_heads, values)
    return [
        torch.randn(1, size, tokens, width, generator=chance).mul_(2).to(dtype).requires_grad_()
        for size, width in sizes
    ]


def by_formula(query: Tensor, key: Tensor, value: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Softmax over the tokens up to each, row by row."""
    outputs = []
    for queries, keys, values in zip(*(part.split(lengths, dim=2) for part in (query, key, value)), strict=True):
        keys, values = (part.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for part in (keys, values))
        scores = SCALE * queries @ keys.mT
        later = torch.ones_like(scores, dtype=torch.bool).triu(1)
        outputs.append((scores.masked_fill(later, -torch.inf).softmax(-1) @ values).transpose(1, 2))
    return torch.cat(outputs, dim=1)


def apart(value: Tensor, right: Tensor) -> float:
    return float((value.detach().double() - right.detach()).norm() / right.detach().norm())


@pytest.mark.parametrize(("heads", "key_heads"), [(4, 4), (6, 2), (4, 1)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    ("lengths", "values"),
    [
        (LENGTHS, WIDTH),
        ((32, 32), WIDTH),
        ((*LENGTHS, SHORT + 1), WIDTH),
        ((SHORT + 40,), WIDTH),
        (LENGTHS, WIDTH // 2),
    ],
)
def test_each_row_attends_to_itself(
    heads: int, key_heads: int, dtype: torch.dtype, lengths: tuple[int, ...], values: int
) -> None:
    given = states(heads, key_heads, sum(lengths), dtype, values)
    output, weights = attend_by_row(Layer(heads // key_heads), *given, None, row_lengths=lengths, scaling=SCALE)
    exact = [part.detach().double().requires_grad_() for part in given]
    right = by_formula(*exact, lengths)
    towards = torch.randn(right.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    gradients = torch.autograd.grad(output, given, towards)
    wanted = torch.autograd.grad(right, exact, towards.double())

    most = 2e-2 if dtype == torch.bfloat16 and max(lengths) > SHORT else 5e-3 if dtype == torch.bfloat16 else 1e-5
    assert weights is None
    assert output.shape == (1, sum(lengths), heads, values)
    assert apart(output, right) < most
    assert [apart(*pair) < most for pair in zip(gradients, wanted, strict=True)] == [True] * 3


def test_the_rows_beside_a_row_do_not_touch_it() -> None:
    given = [part.detach() for part in states(4, 2, 60, torch.bfloat16)]
    others = [part.clone() for part in given]
    for part in others:
        part[:, :, 25:] = 7 - part[:, :, 25:]

    first, second = (attend_by_row(Layer(2), *parts, None, row_lengths=(25, 20, 15))[0] for parts in (given, others))
    assert torch.equal(first[:, :25], second[:, :25])
    assert not torch.equal(first[:, 25:], second[:, 25:])


def test_under_autocast_the_products_are_in_bfloat16() -> None:
    given = states(4, 4, sum(LENGTHS), torch.float32)
    low = [part.detach().bfloat16() for part in given]
    with torch.autocast("cpu", torch.bfloat16):
        output, _ = attend_by_row(Layer(1), *given, None, row_lengths=LENGTHS, scaling=SCALE)
    right, _ = attend_by_row(Layer(1), *low, None, row_lengths=LENGTHS, scaling=SCALE)
    assert torch.equal(output, right)
    assert [part.dtype for part in torch.autograd.grad(output.sum(), given)] == [torch.float32] * 3


def test_a_bias_on_the_scores_is_left_to_the_library() -> None:
    given = [part.detach() for part in states(4, 4, 32, torch.bfloat16)]
    last = torch.zeros(1, 4, 32, 32).index_fill(3, torch.tensor([0]), 99.0)  # every token looks at the first one

    output, _ = attend_by_row(Layer(1), *given, None, row_lengths=(32,), position_bias=last.bfloat16())
    assert apart(output, given[2][:, :, :1].transpose(1, 2).expand_as(output).double()) < 1e-2


def test_what_it_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="softcap"):
        attend_by_row(Layer(1), *states(4, 4, 32, torch.bfloat16), None, row_lengths=(32,), softcap=30.0)


def test_a_mask_is_refused() -> None:
    with pytest.raises(ValueError, match="no attention mask"):
        attend_by_row(Layer(1), *states(4, 4, 8, torch.float32), torch.ones(1, 1, 8, 8), row_lengths=(8,))


def test_neighbours_of_like_length_go_together() -> None:
    groups = layout((5, 32, 33, 64, 7), 32)
    assert [(group.lengths, group.padded) for group in groups] == [([5, 32], 32), ([33, 64], 64), ([7], 32)]
    assert [(group.tokens.start, group.tokens.stop) for group in groups] == [(0, 37), (37, 134), (134, 141)]
    first = groups[0]
    assert first.places.view(2, 32)[1].tolist() == list(range(5, 37))
    assert first.places[first.back].tolist() == list(range(37))
