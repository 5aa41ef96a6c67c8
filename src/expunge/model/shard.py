"""The frozen base in shards over the processes of a run (FSDP2): each holds its part of every layer's weights.

A layer's weights are put together while it computes and let go again after, in the forward and in the backward pass.
Embeddings, final norm, vocabulary head and adapter stay whole in every process, so that all else is as without shards.

All processes put a layer together at once, so all of them must make the same passes, whatever share of the work each
has. `Lockstep` sees to that.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch.distributed import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from expunge.errors import ConfigError
from expunge.model.layers import decoder_layers
from expunge.utils.distributed import current


def shard_layers(model: PreTrainedModel, entry: torch.nn.Module, mesh: DeviceMesh, device: torch.device) -> None:
    """Leave this process its part of the weights of every layer; layers go to `device` one by one, the rest as it is.

    Args:
        model: Frozen and whole, on the CPU, with no adapter in it.
        entry: What every forward pass goes through, see `LoadedModel.entry`.
        mesh: The processes.
        device: Where this one computes.

    Raises:
        ConfigError: The architecture has no layers that are known as such.
    """
    layers = decoder_layers(model)
    if not layers:
        raise ConfigError("--shard-base: this architecture's layers cannot be told apart: leave it out")
    for layer in layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    rest = [tensor for tensor in (*model.parameters(), *model.buffers()) if not isinstance(tensor, DTensor)]
    for tensor in rest:
        tensor.data = tensor.to(device)
    # Without weights of its own: it knows the order of the layers, and gets the next one while another computes.
    fully_shard(entry, mesh=mesh, ignored_params=set(model.parameters()))


def held_bytes(model: torch.nn.Module) -> tuple[int, int]:
    """Size of the weights that this process holds, and of all weights of the model."""
    held = sum(own_part(parameter).untyped_storage().nbytes() for parameter in model.parameters())
    return held, sum(parameter.nbytes for parameter in model.parameters())


def own_part(parameter: torch.Tensor) -> torch.Tensor:
    """What this process holds of a parameter."""
    return parameter.to_local() if isinstance(parameter, DTensor) else parameter


class Lockstep:
    """Keeps the processes of a sharded model at the same pass.

    Each pass begins with a count of those that make one. A process without work of its own joins with one token as long
    as there are others.

    Args:
        model: The sharded model.
        entry: What every forward pass of it goes through.
        autocast: The precision that it computes in.
    """

    def __init__(
        self, model: PreTrainedModel, entry: torch.nn.Module, autocast: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._model, self._autocast = model, autocast
        self._idle = False
        entry.register_forward_pre_hook(self._count, prepend=True)

    def _count(self, *_: object) -> None:
        if not self._idle:
            current().any(True)

    def join(self) -> None:
        """Take part until no process has work left; a backward pass follows each forward one where gradients are on."""
        self._idle = True
        ids = torch.zeros(1, 1, dtype=torch.long, device=self._model.device)
        while current().any(False):
            with self._autocast():
                logits = self._model(input_ids=ids, use_cache=False).logits
            if logits.requires_grad:
                (0 * logits.sum()).backward()
        self._idle = False
