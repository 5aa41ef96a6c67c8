"""The raw material of the gradient-norm attack: how far one text would move the model."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from expunge.data.tokenize import TokenizedExample
from expunge.errors import DataError
from expunge.model.load import LoadedModel
from expunge.model.packing import send


def gradient_norms(
    loaded: LoadedModel, rows: Sequence[TokenizedExample], *, progress: Callable[[int], None] | None = None
) -> list[float]:
    """2-norm of the gradient of each text's mean NLL by all parameters of the model, taken as one vector.

    One backward pass a text; the mean is over the tokens of its completion. Quantised weights have no gradient and do
    not count.

    Raises:
        DataError: A text has no target token.
    """
    norms = []
    with trainable(loaded) as parameters:
        for row in rows:
            norms.append(torch.nn.utils.get_total_norm(gradient(loaded, row, parameters)))
            if progress:
                progress(1)
    return torch.stack(norms).tolist() if norms else []  # read at the end: on a GPU each read would wait


def gradient(
    loaded: LoadedModel, row: TokenizedExample, parameters: Sequence[Tensor], targets: Sequence[int] | None = None
) -> list[Tensor]:
    """Gradient of a text's mean NLL by each of the parameters that it depends on (as `trainable` gives them), fp32 at
    least. The mean is over the tokens at the places `targets`; all of the completion when None.

    Raises:
        DataError: There is no target token.
    """
    targets = row.targets("completion") if targets is None else targets
    if not len(targets):
        raise DataError(f"{row.id}: has no token to predict, so its loss has no gradient: leave the row out")
    ids, positions = (send(torch.tensor(values), loaded.device) for values in ([row.input_ids], list(targets)))
    with loaded.autocast():  # the model's own logits: `loaded.head` is frozen, and the head's weights count here
        logits = loaded.base(input_ids=ids, use_cache=False).logits[0, positions - 1]
    loss = torch.nn.functional.cross_entropy(_widened(logits), ids[0, positions])
    found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    return [_widened(part) for part in found if part is not None]


@contextlib.contextmanager
def trainable(loaded: LoadedModel) -> Iterator[list[Tensor]]:
    """All floating-point parameters of the model, with gradients for as long as this lasts; those of an adapter that is
    on it are not among them, since the gradient of merged weights is that of the base weights beneath it.
    """
    named = (pair for pair in loaded.model.named_parameters() if "lora_" not in pair[0] and pair[1].is_floating_point())
    parameters = [parameter for _, parameter in named]
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield list(parameters)
    finally:
        for parameter, value in zip(parameters, before, strict=True):
            parameter.requires_grad_(value)


def _widened(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))
