"""An adapter in training: all its weights, gradients and moments in one buffer each, so that a step is few kernels.

An adapter of a 30-layer model has 420 small matrices. Cast, cleared, measured, clipped and updated one by one they
cost a GPU thousands of kernels a step that compute next to nothing. Here the matrices are views:

    adapter = FlatAdapter(loaded)                  # after add_adapter; loaded.model trains through it from now on
    for step in steps:
        adapter.gradients.zero_()                  # one kernel; parameter.grad are views and stay
        loss.backward()                            # any number of micro-batches
        norm = adapter.update(rate, max_norm, loss)    # clip and Adam; a tensor on the device, no host read

`adapter.parameters` are the same `nn.Parameter`s as before, in the order of `trainable(model)`; they can still be
saved, averaged and loaded one by one. `adapter.gradients` is what processes add up. Layers multiply by one copy of all
weights in the precision of the products, which one kernel makes before every forward pass.
"""

from functools import cache
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from expunge.model.adapter import trainable
from expunge.model.load import LoadedModel

ALIGNED = 8
"""Matrices begin at multiples of so many elements, 16 bytes in bfloat16: the products' kernels want that."""


class FlatAdapter:
    """The adapter of a model as one flat vector, with Adam on it.

    Attributes:
        parameters: The adapter's matrices, views of `weights`; their `grad` are views of `gradients`.
        weights: `(elements,)`, in fp32 (fp64 in tests).
        gradients: `(elements,)`, of the same dtype; set to zero by the caller, never replaced.
        optimizer: Adam without weight decay; the numbers are those of `torch.optim.Adam` on each matrix.

    Args:
        loaded: A model with a LoRA adapter, see `add_adapter`. Its adapted layers get another forward.
    """

    def __init__(self, loaded: LoadedModel) -> None:
        self.parameters = trainable(loaded.model)
        starts = [0]
        for parameter in self.parameters:
            starts.append(starts[-1] + -(-parameter.numel() // ALIGNED) * ALIGNED)
        first = self.parameters[0]
        self.weights = torch.nn.Parameter(torch.zeros(starts[-1], dtype=first.dtype, device=first.device))
        self.gradients = torch.zeros_like(self.weights.data)
        self.weights.grad = self.gradients
        products = loaded.dtype if loaded.dtype == torch.bfloat16 else first.dtype
        low = self.weights.data if products == first.dtype else torch.zeros_like(self.gradients, dtype=products)
        copies: dict[Tensor, Tensor] = {}
        for parameter, start in zip(self.parameters, starts, strict=False):
            place, shape = slice(start, start + parameter.numel()), parameter.shape
            self.weights.data[place].copy_(parameter.data.flatten())
            parameter.data = self.weights.data[place].view(shape)
            parameter.grad = self.gradients[place].view(shape)
            copies[parameter] = low[place].view(shape)
        on_gpu = first.device.type == "cuda"
        # The rate is a tensor there, so that neither a change nor a captured step needs the host.
        rate = torch.zeros((), device=first.device) if on_gpu else 0.0
        self.optimizer = torch.optim.Adam([self.weights], lr=rate, fused=on_gpu, capturable=on_gpu)
        for layer in loaded.model.modules():
            # Layers in 4 bits have a class of their own. Stacked experts add to a weight, not to an output: PEFT does.
            if isinstance(layer, LoraLayer) and isinstance(layer.get_base_layer(), torch.nn.Linear | Conv1D):
                (name,) = layer.lora_A
                down, up = (module.get_parameter("weight") for module in (layer.lora_A[name], layer.lora_B[name]))
                layer.__class__ = _flat(type(layer))  # type: ignore[assignment]
                vars(layer)["low"] = copies[down], copies[up]
        self._low = low
        if low.dtype != first.dtype:
            loaded.entry.register_forward_pre_hook(self._round)

    def _round(self, *_: object) -> None:
        self._low.copy_(self.weights.data)

    @torch.no_grad()
    def update(self, rate: float, max_norm: float | None = None, losses: Tensor | None = None) -> Tensor:
        """Clip the gradient and take one step of Adam; where a number is not finite, all stays as it is.

        Args:
            rate: Learning rate.
            max_norm: Bound on the gradient's norm; none when None or 0.
            losses: What must be finite beside the gradient.

        Returns:
            The norm before clipping, `()`, on the device.
        """
        norm: Tensor = torch.linalg.vector_norm(self.gradients)
        finite = torch.cat([norm[None], *([] if losses is None else [losses.flatten()])]).isfinite().all()
        if max_norm:
            self.gradients.mul_((max_norm / norm).clamp(max=1.0))
        (group,) = self.optimizer.param_groups
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
            self.optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
        elif finite:
            group["lr"] = rate
        else:
            return norm
        self.optimizer.step()
        return norm

    def state(self) -> dict[str, Tensor]:
        """Everything that a later step depends on: weights, Adam's moments and its count of steps."""
        return {"weights": self.weights.data, **self.optimizer.state[self.weights]}

    @torch.no_grad()
    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Take over what `state` gave."""
        moments = dict(tensors)
        self.weights.data.copy_(moments.pop("weights"))
        device = self.weights.device
        self.optimizer.state[self.weights] = {
            name: value if name == "step" and device.type == "cpu" else value.to(device, copy=True)
            for name, value in moments.items()
        }


def round_once(loaded: LoadedModel) -> None:
    """Let the layers of an adapter that is only measured multiply as in training, by matrices that are rounded here.

    Layers that do more than add two products (DoRA, biases) stay as PEFT has them.
    """
    for layer in loaded.model.modules():
        if type(layer) is LoraLinear and not layer.lora_variant and not any(layer.lora_bias.values()):
            (name,) = layer.lora_A
            weights = (module.get_parameter("weight") for module in (layer.lora_A[name], layer.lora_B[name]))
            layer.__class__ = _flat(LoraLinear)  # type: ignore[assignment]
            vars(layer)["low"] = tuple(weight.detach().to(loaded.dtype) for weight in weights)


@cache
def _flat(kind: type[LoraLayer]) -> type[LoraLayer]:
    """A kind of adapted layer with another forward.

    `base(x) + scaling * (x @ down.T) @ up.T`; as PEFT has it where the adapter is off or merged.
    """

    def forward(self: LoraLayer, x: Tensor) -> Tensor:
        if self.disable_adapters or self.merged:
            return kind.forward(self, x)  # type: ignore[attr-defined, no-any-return]
        (name,) = self.lora_A
        weights = self.lora_A[name].weight, self.lora_B[name].weight, *vars(self)["low"]
        output: Tensor = _LowRank.apply(  # type: ignore[no-untyped-call]
            self.base_layer(x), x, *weights, self.scaling[name]
        )
        return output

    return type(kind.__name__, (kind,), {"forward": forward})


class _LowRank(torch.autograd.Function):
    """`base + scale * (x @ down.T) @ up.T` in two products and its gradient in four, without a cast of a weight.

    The factor is part of a product each time (`addmm` without what it adds, under `beta=0`).
    """

    @staticmethod
    def forward(
        ctx: Any, base: Tensor, x: Tensor, down: Tensor, up: Tensor, low_down: Tensor, low_up: Tensor, scale: float
    ) -> Tensor:
        ctx.scale, ctx.dtypes = scale, (base.dtype, x.dtype)
        with torch.autocast(x.device.type, enabled=False):
            rows = x.flatten(0, -2).to(low_down.dtype)
            hidden = rows @ low_down.T
            output = torch.addmm(base.flatten(0, -2).to(low_up.dtype), hidden, low_up.T, alpha=scale)
        ctx.save_for_backward(rows, hidden)
        ctx.matrices = low_down, low_up  # written again, with the same values, by the next forward pass of a step
        # Not `view`: Gemma 3n changes what a projection returns in place, which autograd forbids of a view.
        whole: Tensor = torch.ops.aten._unsafe_view(output.to(base.dtype), base.shape)
        return whole

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor, None, None, None]:
        rows, hidden = ctx.saved_tensors
        low_down, low_up = ctx.matrices
        options = {"beta": 0, "alpha": ctx.scale}
        nothing = low_up[:1, 0]
        with torch.autocast(grad.device.type, enabled=False):
            flat_grad = grad.flatten(0, -2).to(low_up.dtype)
            middle = torch.addmm(nothing, flat_grad, low_up, **options)
            grad_up = torch.addmm(nothing, flat_grad.T, hidden, **options)
            grad_down = middle.T @ rows
            grad_x = None
            if ctx.needs_input_grad[1]:
                grad_x = (middle @ low_down).to(ctx.dtypes[1]).view(*grad.shape[:-1], -1)
        return grad.to(ctx.dtypes[0]), grad_x, grad_down, grad_up, None, None, None
