"""Find a model's vocabulary head and prove that it is what it looks like."""

import torch
from transformers import PreTrainedModel

from expunge.kernels import Head


def backbone(model: PreTrainedModel) -> torch.nn.Module:
    """The part of a causal LM that ends in the final hidden states."""
    return getattr(model, model.base_model_prefix)


def find_head(model: PreTrainedModel) -> tuple[Head, str | None]:
    """The head of `model`, checked on a few tokens against the model's own logits.

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
    softcap = getattr(config, "final_logit_softcapping", None)
    head = Head(output.weight.detach(), getattr(output, "bias", None), float(scale), softcap)
    ids = torch.arange(8, device=output.weight.device).remainder(config.vocab_size)[None]
    with torch.no_grad():
        try:
            states = backbone(model)(input_ids=ids, use_cache=False).last_hidden_state[0]
            own = model(input_ids=ids, use_cache=False).logits[0].float()
            difference = (head.logits(states) - own).abs().max().item()
        except (AttributeError, RuntimeError, TypeError) as error:
            return Head(None), f"its parts do not fit together ({str(error).splitlines()[0]})"
    precision = torch.finfo(output.weight.dtype).eps if output.weight.dtype.is_floating_point else 1e-2
    if not difference <= 16 * precision * max(1.0, own.abs().max().item()):
        return Head(None), f"its logits differ from the known forms by {difference:.3g}"
    return head, None


def cast_head(head: Head, model: PreTrainedModel, dtype: torch.dtype) -> Head:
    """The head with its weights in the dtype that matrix products run in (no copy where they are in it already)."""
    if head.weight is None:
        return head
    output = model.get_output_embeddings()
    bias = getattr(output, "bias", None)
    return Head(
        output.weight.detach().to(dtype), None if bias is None else bias.detach().to(dtype), head.scale, head.softcap
    )
