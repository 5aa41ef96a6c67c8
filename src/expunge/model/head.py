"""Find a model's vocabulary head and prove that it is what it looks like."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from expunge.kernels import Head
from expunge.kernels.head import CHUNK_ELEMENTS
from expunge.model.memory import free_memory

LARGEST_LOGITS = (0.0, 50.0)
"""The head is tried on final states as they are, and scaled until their largest logit is the second of these: a bound
on logits that nothing names (a soft cap) is seen where logits are large, as on texts that are known by heart."""
SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
"""What configurations call the bound on their logits: Gemma, RecurrentGemma, xLSTM."""
ROUNDINGS = 4
"""Times a model may round its logits on their way in its own dtype: product, scale, cap and back."""
BLOCK_SHARE, BLOCK_BYTES = 0.1, 24
"""Of a GPU's free memory, what blocks of logits may take; bytes of an element in all that are alive at once (logits,
log-probabilities and gradients in fp32)."""
EXACT = 64 * torch.finfo(torch.float32).eps
"""Sums of products in another order, as a share of the largest logit."""


def backbone(model: PreTrainedModel) -> torch.nn.Module:
    """The part of a causal LM that ends in the final hidden states."""
    module: torch.nn.Module = getattr(model, model.base_model_prefix)
    return module


def find_head(model: PreTrainedModel) -> tuple[Head, str | None]:
    """The head of `model`, checked on a few tokens against the model's own log-probabilities, with an adapter in it on.

    Returns:
        The head and None; or, where the head does something unknown, a `Head` without weights (the plain path: the
        model computes its logits itself) and the reason.
    """
    config = model.config.get_text_config()
    output = model.get_output_embeddings()
    if output is None or not hasattr(output, "weight") or not hasattr(model, model.base_model_prefix):
        return Head(None), "it has no output embedding of the usual form"
    scale = getattr(config, "logit_scale", None)
    if scale is None:
        scale = 1 / (getattr(config, "logits_scaling", None) or 1.0)
    softcap = next((cap for name in SOFT_CAPS if (cap := getattr(config, name, None))), None)
    head = Head(output.weight.detach(), _bias(output), float(scale), softcap)
    try:
        difference = _difference(model, head)
    except torch.OutOfMemoryError:
        raise
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
        return Head(None), f"its parts do not fit together ({str(error).splitlines()[0]})"
    precision = torch.finfo(output.weight.dtype).eps if output.weight.dtype.is_floating_point else 1e-2
    if not difference <= max(EXACT, ROUNDINGS * precision):
        return Head(None), f"its logits differ from the known forms by {difference:.3g} of their size"
    return head, None


def cast_head(head: Head, model: PreTrainedModel, dtype: torch.dtype) -> Head:
    """The head with its weights in the dtype that matrix products run in (no copy where they are in it already)."""
    if head.weight is None:
        return head
    output = model.get_output_embeddings()
    bias = _bias(output)
    weight, bias = output.weight.detach().to(dtype), None if bias is None else bias.to(dtype)
    return replace(head, weight=weight, bias=bias, block=_block_elements(weight.device))


def _block_elements(device: torch.device) -> int | None:
    """Bound on the elements of a block of logits by the memory that is free on a GPU."""
    free = free_memory(device) if device.type != "cpu" else None
    return None if free is None else max(1, min(CHUNK_ELEMENTS[device.type], int(BLOCK_SHARE * free) // BLOCK_BYTES))


@torch.no_grad()
def _difference(model: PreTrainedModel, head: Head) -> float:
    """Largest difference of log-probabilities by `head` from the model's own, as a share of its largest logit."""
    assert head.weight is not None
    rows = min(model.config.get_text_config().vocab_size, head.weight.shape[0])
    ids = torch.arange(8, device=head.weight.device).remainder(rows)[None]
    part, worst = backbone(model), 0.0
    states: Tensor = part(input_ids=ids, use_cache=False).last_hidden_state
    plain = torch.nn.functional.linear(states.to(head.weight.dtype), head.weight).float().abs().max().item()
    for largest in LARGEST_LOGITS:
        factor = largest / max(plain * head.scale, 1e-6) if largest else 1.0
        scaled = states * factor

        def replace(module: torch.nn.Module, inputs: Any, output: Any, scaled: Tensor = scaled) -> Any:
            output.last_hidden_state = scaled
            return output

        handle = part.register_forward_hook(replace)
        try:
            theirs = model(input_ids=ids, use_cache=False).logits[0].double()
        finally:
            handle.remove()
        ours = head.logits(scaled[0]).double()
        gap = (ours.log_softmax(-1) - theirs.log_softmax(-1)).abs().max().item()
        size = max(1.0, theirs.abs().max().item(), ours.abs().max().item())
        worst = max(worst, gap / size) if gap == gap else float("nan")
    return worst


def _bias(output: torch.nn.Module) -> Tensor | None:
    bias = getattr(output, "bias", None)
    return bias.detach() if isinstance(bias, Tensor) else None
