"""The raw material of the gradient-norm attack: how far one text would move the model."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

from expunge.data.tokenize import TokenizedExample
from expunge.errors import DataError
from expunge.model.load import LoadedModel


def gradient_norms(
    loaded: LoadedModel,
    rows: Sequence[TokenizedExample],
    *,
    order: float = 2.0,
    span: str = "completion",
    compat: Literal["open-unlearning"] | None = None,
    progress: Callable[[int], None] | None = None,
) -> list[float]:
    """Norm of the gradient of each text's mean NLL by all parameters of the model, taken as one vector.

    Wang et al. 2024 (2402.17012). One backward pass a text; quantised weights have no gradient and do not count.

    Args:
        loaded: The model.
        rows: The texts.
        order: p of the p-norm, above 0; `float("inf")` is the largest entry.
        span: Which tokens the mean is over: those of the `completion`, or `all` (the first of a text never counts).
        compat: `open-unlearning` takes the mean over the parameter tensors of each one's norm, and leaves the last
            label out.
        progress: Called with the number of texts that have just been done.

    Raises:
        DataError: A text has no target token.
    """
    norms = []
    with _trainable(loaded) as parameters:
        for row in rows:
            targets = list(row.targets(span))[: -1 if compat else None]
            if not targets:
                raise DataError(f"{row.id}: has no token to predict, so its loss has no gradient: leave the row out")
            gradients = torch.autograd.grad(_mean_nll(loaded, row, targets), parameters, allow_unused=True)
            own = [torch.linalg.vector_norm(_widened(g), order) for g in gradients if g is not None]
            values = torch.stack(own)
            norms.append((values.mean() if compat else torch.linalg.vector_norm(values, order)).item())
            if progress:
                progress(1)
    return norms


def _mean_nll(loaded: LoadedModel, row: TokenizedExample, targets: Sequence[int]) -> Tensor:
    """From the model's own logits: `loaded.head` is frozen, and the head's weights count here."""
    ids = torch.tensor([row.input_ids], device=loaded.device)
    positions = torch.tensor(targets, device=loaded.device)
    with loaded.autocast():
        logits = loaded.base(input_ids=ids, use_cache=False).logits[0, positions - 1]
    return torch.nn.functional.cross_entropy(_widened(logits), ids[0, positions])


def _widened(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


@contextlib.contextmanager
def _trainable(loaded: LoadedModel) -> Iterator[list[Tensor]]:
    """All floating-point parameters, with gradients for as long as this lasts."""
    parameters = [parameter for parameter in loaded.model.parameters() if parameter.is_floating_point()]
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield parameters
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.requires_grad_(value)
