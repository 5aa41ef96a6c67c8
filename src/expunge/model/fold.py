"""Saved adapters: put into their base, or folded into it and proven."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel

from expunge.errors import ModelError
from expunge.model.layers import embedding_of
from expunge.model.proof import check_same, log_probs, probe_rows
from expunge.model.ranks import Pairs, pairs_of
from expunge.model.source import Source, check_adapter, first_line
from expunge.utils.reading import read_object

KEPT = 0.01
"""Share of the largest log-probability by which a base may differ that an adapter was put into and switched off: the
same products in the same order, so that bf16 sums in another order are the most that can move it."""


def put_adapter(model: PreTrainedModel, folder: Path, alphas: Mapping[str, Any] | None = None) -> PeftModel:
    """Put a saved adapter into its base model.

    Args:
        model: The base.
        folder: The adapter.
        alphas: Fields of its configuration to use instead of those that are there.

    Raises:
        ModelError: It has no weights in safetensors format, some that are not finite, does not fit the model, or acts
            on prompts instead of weights, which the model's layers would not show.
    """
    file = check_adapter(folder)
    try:
        with warnings.catch_warnings(), safe_open(file, framework="pt") as weights:
            warnings.simplefilter("ignore")  # of PEFT, about what is looked at here
            broken = [key for key in weights.keys() if not weights.get_tensor(key).isfinite().all()]  # noqa: SIM118
            config = PeftConfig.from_pretrained(str(folder))
            for key, value in (alphas or {}).items():
                setattr(config, key, value)
            peft_model = PeftModel.from_pretrained(model, str(folder), config=config, torch_device="cpu").eval()
            # Embeddings that are adapted may stand in the file as well, or not.
            least, most = (
                set(get_peft_model_state_dict(peft_model, save_embedding_layers=save)) for save in (False, "auto")
            )
            other = (least - set(weights.keys())) | (set(weights.keys()) - most)
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise ModelError(f"{folder}: this adapter does not fit the model ({first_line(error)})") from None
    if broken:
        raise ModelError(f"{folder}: the adapter's weight {broken[0]} holds values that are not finite: it is damaged")
    settings = peft_model.peft_config["default"]
    if settings.is_prompt_learning or getattr(settings, "alora_invocation_tokens", None):
        kind = str(getattr(settings.peft_type, "value", "adapter"))
        raise ModelError(
            f"{folder}: this adapter ({kind}) acts on certain prompts and not on the weights: it can neither be folded "
            "nor measured"
        )
    if other:
        raise ModelError(
            f"{folder}: this adapter does not fit the model ({len(other)} weights are in one of them only, "
            f"first {min(other)})"
        )
    return peft_model


def check_base_kept(peft_model: PeftModel, untouched: Tensor, ids: Tensor, folder: Path, **options: Any) -> None:
    """Look whether the base still says what it said before an adapter was put into it.

    Some take their start from a decomposition of the base and leave the rest in its weights (PiSSA, OLoRA), or give it
    more layers: with the adapter off, the model is another one than the untouched.

    Raises:
        ModelError: It does not.
    """
    with peft_model.disable_adapter():
        off = log_probs(peft_model, ids, **options)
    if untouched.isfinite().all() and (off - untouched).abs().max() > KEPT * untouched.abs().max():
        raise ModelError(
            f"{folder}: this adapter changes the base's own weights or layers when it is put in, so the model without "
            f"it is not the untouched one: give {folder} as --model (it is folded in then), or save it as plain LoRA"
        )


def fold(model: PreTrainedModel, source: Source) -> tuple[PreTrainedModel, list[Pairs] | None]:
    """Fold the source's adapters into their base one after the other, each proven on a few rows.

    Returns:
        The folded model, and the adapters as pairs of matrices where they are nothing else.

    Raises:
        ModelError: One has nothing to fold (prompt tuning and the like), or folds into another model.
    """
    parts: list[Pairs | None] = []
    for folder in source.adapters:
        what = f"--model {folder}: this adapter cannot be folded into its base"
        # Before the adapter goes in: some change the base's own tensors when they are put there.
        trained = read_object(folder / "adapter_config.json", ModelError).get("trainable_token_indices")
        ids = probe_rows(model, trained if isinstance(trained, list) else ())
        untouched = log_probs(model.eval(), ids)
        peft_model = put_adapter(model, folder)
        kind = str(getattr(peft_model.peft_config["default"].peft_type, "value", "adapter"))
        if not hasattr(peft_model.base_model, "merge_and_unload"):
            raise ModelError(f"{what}: {kind} has no weights that could be folded: give a model without it")
        start = str(getattr(peft_model.active_peft_config, "init_lora_weights", ""))
        if "niter" in start:
            raise ModelError(f"{what}: its start ({start}) is drawn at random at every load: save it as plain LoRA")
        right = log_probs(peft_model, ids)
        parts.append(pairs_of(peft_model))
        _untie(model)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = peft_model.merge_and_unload()
        except (AttributeError, NotImplementedError, RuntimeError, ValueError) as error:
            raise ModelError(f"{what} ({kind}: {first_line(error)})") from None
        check_same(log_probs(model, ids), right, untouched, what, dtype=torch.float32)
    return model, None if None in parts else [part for part in parts if part is not None]


def _untie(model: PreTrainedModel) -> None:
    """Give the head a matrix of its own where an adapter is to change it or the embedding that it shares one with.

    In the one that both share, what is folded in for the one would change the other as well.
    """
    head, shared = model.get_output_embeddings(), embedding_of(model)
    adapted = any(isinstance(module, BaseTunerLayer) for module in (model.get_input_embeddings(), head))
    if head is None or not adapted or head.weight is not shared:
        return
    layer = head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
    layer.weight = torch.nn.Parameter(shared.detach().clone(), requires_grad=False)
    for config in (model.config, model.config.get_text_config()):
        config.tie_word_embeddings = False
