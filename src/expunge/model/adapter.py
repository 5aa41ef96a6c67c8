"""The LoRA adapter in a model: where it sits, and how strong it is."""

from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from expunge.errors import ConfigError, ModelError
from expunge.model.load import LoadedModel
from expunge.model.proof import probe_rows
from expunge.model.targets import choose_targets, frozen_experts


def add_adapter(loaded: LoadedModel, *, rank: int, alpha: float | None, modules: str, seed: int) -> PeftModel:
    """Put a fresh LoRA adapter (fp32, no dropout, B = 0) into the model; `loaded.model` becomes the PEFT model.

    Raises:
        ConfigError: The target modules do not exist, or the rank is larger than every adapted layer.
        ModelError: No gradient reaches the adapter.
    """
    base = loaded.base
    targets = choose_targets(base, modules, loaded.autocast())
    conv = any(isinstance(module, Conv1D) for module in base.modules())
    torch.manual_seed(seed)
    lora_alpha: Any = rank if alpha is None else alpha  # PEFT declares an int and divides by the rank whatever it gets
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=lora_alpha,
        target_modules=targets.modules,
        exclude_modules=targets.left_out or None,
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=conv,
    )
    try:
        model = get_peft_model(base, config)
        if lost := _lost(model):
            model.unload()
            names = ", ".join(sorted({name.rpartition(".")[2] for name in lost}))
            loaded.notes.append(f"adapter: {len(lost)} modules are left out ({names}): PEFT loads no adapter for them")
            config.exclude_modules = [*targets.left_out, *lost]
            torch.manual_seed(seed)
            model = get_peft_model(base, config)
    except ValueError:
        raise ConfigError(f"--target-modules {modules}: the model has no layer to adapt") from None
    full = max(min(layer.in_features or 0, layer.out_features or 0) for layer in _layers(model))
    if rank > full:
        model.unload()
        raise ConfigError(f"--lora-rank {rank}: larger than the adapted layers, which have at most rank {full}")
    for parameter in trainable(model):
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    if loaded.dtype == torch.bfloat16:
        for layer in _layers(model):
            layer.cast_input_dtype_enabled = False  # autocast rounds inputs anyway; fp32 copies cost a sixth
    model.eval()  # no dropout anywhere, so that the cached reference stays exact
    if loaded.lockstep is None and not _is_reached(loaded, model):
        model.unload()
        kind = type(base).__name__
        raise ModelError(f"{kind} computes its layers without gradients: no adapter in it can be trained")
    loaded.model = model
    loaded.notes += targets.notes
    if frozen := frozen_experts(model):
        loaded.notes.append(
            f"adapter: {len(frozen)} stacks of weights, as of experts, stay frozen: PEFT adapts none here ({frozen[0]})"
        )
    return model


def _is_reached(loaded: LoadedModel, model: PeftModel) -> bool:
    """Whether a loss would have gradients: some layers are made for another mode than that of a frozen base."""
    with loaded.autocast():
        logits: Tensor = model(input_ids=probe_rows(loaded.base)[:1], use_cache=False).logits
    return logits.requires_grad


def _lost(model: PeftModel) -> list[str]:
    """Modules whose part of a saved adapter PEFT gives another name when it is loaded, and then leaves out.

    It renames keys as transformers does for the checkpoints of an architecture, where the model has them already.
    """
    saved = get_peft_model_state_dict(model, save_embedding_layers=False)
    result: Any = set_peft_model_state_dict(model, saved)
    parts = {key.partition(".lora_")[0] for key in result.missing_keys if ".lora_" in key}
    return sorted(part.removeprefix("base_model.model.").removesuffix(".base_layer") for part in parts)


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The adapter's parameters, in a fixed order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def set_scale(model: PeftModel, factor: float) -> None:
    """Give the adapter `factor` times the scale that it was trained with, layer by layer."""
    for layer in _layers(model):
        for name in layer.scaling:
            layer.set_scale(name, factor)


def scale_of(model: PeftModel) -> float:
    """How many times the scale that it was trained with the adapter has."""
    layer = _layers(model)[0]
    name = next(iter(layer.scaling))
    now = layer.scaling[name]
    layer.set_scale(name, 1.0)
    trained, layer.scaling[name] = layer.scaling[name], now
    return float(now / trained) if trained else 1.0


def _layers(model: torch.nn.Module) -> list[LoraLayer]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]
