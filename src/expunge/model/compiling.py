"""The repeated layer of a model compiled once: a step launches a few large kernels a layer in place of 180 small ones.

Layers share one graph (and another for the first, whose input takes no gradient), so compiling takes seconds whatever
the depth. Steps of one number of tokens keep it; another number makes it anew, for any number.
"""

import time
from collections.abc import Callable

import torch
from torch._dynamo.exc import TorchDynamoException

from expunge.errors import TrainingError
from expunge.model.layers import decoder_layers
from expunge.model.load import LoadedModel

BACKEND = "inductor"
GRAPHS = 32
"""Most graphs of one layer: with and without adapter, gradient and attention mask, of one size and of any."""


def compile_layers(loaded: LoadedModel, trial: Callable[[], object]) -> str:
    """Compile the transformer layers, or leave them as they are.

    Args:
        loaded: The model in training, its adapter a `FlatAdapter`.
        trial: A forward and backward pass of the size that steps will have; what it adds to gradients is the caller's
            to clear.

    Returns:
        One line that says how long it took, or why the layers run as before.
    """
    layers = decoder_layers(loaded.base)
    if not layers:
        return "not compiled: the architecture has no layers that are known to repeat"
    if any("forward" in vars(layer) for layer in layers):
        return "not compiled: gradient checkpointing runs the layers twice"
    if loaded.lockstep is not None:
        return "not compiled: processes share the weights of the layers"
    clock = time.perf_counter()
    torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
    for layer in layers:
        layer.compile(backend=BACKEND)
    try:
        trial()
    except torch.OutOfMemoryError:
        raise
    except (TorchDynamoException, RuntimeError, TrainingError) as error:  # the last where only compiled ones do not fit
        for layer in layers:
            layer._compiled_call_impl = None
        torch._dynamo.reset()
        return f"not compiled: {' '.join(str(error).split())[:200]}"
    return f"layers compiled in {time.perf_counter() - clock:.0f} s"
