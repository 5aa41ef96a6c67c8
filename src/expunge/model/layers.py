"""The repeated layers of a transformer: how they are computed, and what comes out of one of them."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from expunge.errors import ConfigError
from expunge.model.packing import using_attention


def decoder_layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The repeated layers in their order; empty where the architecture does not mark them."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def inner_layer(model: torch.nn.Module, wanted: int, forward: Callable[[], object]) -> torch.nn.Module:
    """The layer whose output a loss reads.

    Args:
        model: A model with an adapter.
        wanted: Its number among the layers that text comes to, from 0; below 0: that after the first fourth of them.
        forward: A forward pass of the model, with gradients.

    Raises:
        ConfigError: There is no such layer, or nothing of the adapter stands before its output.
    """
    with ExitStack() as stack:
        states = {layer: stack.enter_context(captured_states(layer)) for layer in decoder_layers(model)}
        forward()
    layers = [layer for layer, found in states.items() if found]
    if not layers:
        raise ConfigError("--loss: it reads an inner layer, and this architecture's layers cannot be told apart")
    if wanted >= len(layers):
        raise ConfigError(f"--loss-args layer={wanted}: the model has {len(layers)} layers, from 0")
    number = len(layers) // 4 if wanted < 0 else wanted
    if not states[layers[number]][0].requires_grad:
        raise ConfigError(f"--loss-args layer={number}: no part of the adapter stands before its output")
    return layers[number]


def recompute_layers(model: PreTrainedModel) -> None:
    """Keep only the inputs of the transformer layers for the backward pass, and compute the rest again there.

    The model's own switch works in training mode alone, and with it comes dropout.

    Raises:
        ConfigError: The architecture has no layers that can be recomputed.
    """
    layers = decoder_layers(model)
    if not layers:
        raise ConfigError("--gradient-checkpointing: this architecture's layers cannot be recomputed: leave it out")
    config = model.config.get_text_config()

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """The layer runs again in the backward pass, and must attend there as it did."""
        return nullcontext(), using_attention(config, config._attn_implementation)

    for layer in layers:  # nothing draws in them, and to read a generator's state would break the capture of a pass
        layer.forward = partial(
            checkpoint, layer.forward, use_reentrant=False, context_fn=contexts, preserve_rng_state=False
        )


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
