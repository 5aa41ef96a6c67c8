"""The repeated layers of a transformer, and what comes out of one of them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from expunge.errors import ConfigError


def decoder_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The repeated layers in their order; empty where the architecture does not mark them."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def inner_layer(model: torch.nn.Module, wanted: int) -> int:
    """The number of a layer; of one that is below 0 that after the first fourth of them.

    Raises:
        ConfigError: The model has no such layer.
    """
    depth = len(decoder_layers(model))
    if wanted >= depth:
        raise ConfigError(f"--loss-args layer={wanted}: the model has {depth} layers that can be told apart, from 0")
    return depth // 4 if wanted < 0 else wanted


def embedding_of(model: PreTrainedModel) -> Tensor:
    """Weights of the input embedding `(rows, width)`; it may have more rows than the vocabulary has tokens."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, Tensor)
    return weight


@contextmanager
def captured_states(layer: torch.nn.Module | None) -> Iterator[list[Tensor]]:
    """Within the context, the hidden states that a layer gives in each forward pass are appended to the list.

    Without a layer, nothing is.
    """
    found: list[Tensor] = []
    if layer is None:
        yield found
        return

    def keep(module: torch.nn.Module, inputs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    handle = layer.register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()
