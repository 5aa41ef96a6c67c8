"""The LoRA adapter: where it sits, how strong it is, how it is switched off, saved and merged."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from expunge.errors import ConfigError, ModelError
from expunge.model.layers import decoder_layers
from expunge.model.load import LoadedModel, base_name, check_adapter, load_model, put_adapter
from expunge.model.packing import using_attention

ATTENTION = ("q_proj", "v_proj")
FUSED_ATTENTION = ("qkv_proj", "query_key_value", "Wqkv", "c_attn")
"""Names of query and value projections, and of those that are one with the key projection."""


def target_modules(model: PreTrainedModel, wanted: str) -> str | list[str]:
    """What `--target-modules` means for this model, as PEFT takes it.

    `auto` is PEFT's own choice for the architecture, or query and value projections or the fused one that holds them.

    Raises:
        ConfigError: PEFT has no choice for the architecture, or a named module is not in the model.
    """
    if wanted == "all-linear":
        return wanted
    linear = {name for name, module in model.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))}
    leaves = {full.rpartition(".")[2] for full in linear}
    if wanted == "auto":
        names = list(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type) or ATTENTION)
        if not any(name in leaves for name in names):
            names = [name for name in (*ATTENTION, *FUSED_ATTENTION) if name in leaves] or names
    else:
        names = [name.strip() for name in wanted.split(",") if name.strip()]
    output = model.get_output_embeddings()
    for name in names:
        found = [full for full in linear if full == name or full.endswith("." + name)]
        if not found:
            there = ", ".join(sorted(leaves))
            raise ConfigError(f"--target-modules {wanted}: the model has no linear module {name}; it has {there}")
        if any(model.get_submodule(full) is output for full in found):
            raise ConfigError(f"--target-modules {wanted}: {name} is the vocabulary head, which stays frozen")
    return names


def add_adapter(loaded: LoadedModel, *, rank: int, alpha: float | None, modules: str, seed: int) -> PeftModel:
    """Put a fresh LoRA adapter (fp32, no dropout, B = 0) into the model; `loaded.model` becomes the PEFT model.

    Raises:
        ConfigError: The target modules do not exist, or the rank is larger than every adapted layer.
    """
    base = loaded.base
    targets = target_modules(base, modules)
    conv = any(isinstance(module, Conv1D) for module in base.modules())
    torch.manual_seed(seed)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=rank if alpha is None else alpha,
        target_modules=targets,
        lora_dropout=0.0,
        bias="none",
        fan_in_fan_out=conv,
    )
    try:
        model = get_peft_model(base, config)
    except ValueError:
        raise ConfigError(f"--target-modules {modules}: the model has no layer to adapt") from None
    full = max(min(layer.in_features, layer.out_features) for layer in model.modules() if isinstance(layer, LoraLayer))
    if rank > full:
        model.unload()
        raise ConfigError(f"--lora-rank {rank}: larger than the adapted layers, which have at most rank {full}")
    for parameter in trainable(model):
        parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    if loaded.dtype == torch.bfloat16:
        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.cast_input_dtype_enabled = False  # autocast rounds inputs anyway; fp32 copies cost a sixth
    model.eval()  # no dropout anywhere, so that the cached reference stays exact
    loaded.model = model
    return model


def recompute_layers(loaded: LoadedModel) -> None:
    """Keep only the inputs of the transformer layers for the backward pass, and compute the rest again there.

    The model's own switch works in training mode alone, and with it comes dropout.

    Raises:
        ConfigError: The architecture has no layers that can be recomputed.
    """
    layers = decoder_layers(loaded.base)
    if not layers:
        raise ConfigError("--gradient-checkpointing: this architecture's layers cannot be recomputed: leave it out")
    config = loaded.base.config.get_text_config()

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """The layer runs again in the backward pass, and must attend there as it did."""
        return nullcontext(), using_attention(config, config._attn_implementation)

    for layer in layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, context_fn=contexts)


def trainable(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    """The adapter's parameters, in a fixed order."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def save_adapter(model: PeftModel, folder: Path, *, base_name: str) -> None:
    """Write the files of a standard PEFT adapter.

    Args:
        model: The PEFT model.
        folder: Where to.
        base_name: What `base_model_name_or_path` should say.
    """
    model.save_pretrained(folder, safe_serialization=True)
    config_path = folder / "adapter_config.json"
    config = json.loads(config_path.read_text()) | {"base_model_name_or_path": base_name}
    config_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def adapter_folder(name: str) -> Path:
    """The adapter folder that a run directory or adapter folder means.

    Raises:
        ModelError: There is none, or it has no weights.
    """
    for folder in (Path(name), Path(name) / "adapter"):
        if (folder / "adapter_config.json").exists():
            check_adapter(folder)
            return folder
    raise ModelError(f"{name}: neither an adapter folder nor a run directory with one (no adapter_config.json)")


def attach_adapter(loaded: LoadedModel, name: str) -> None:
    """Put a saved adapter into a loaded base model; `loaded.model` becomes the PEFT model.

    Raises:
        ModelError: It does not fit the base.
    """
    loaded.model = put_adapter(loaded.base, adapter_folder(name))


def load_unlearned(
    run: str, *, model: str | None = None, dtype: str = "float32", device: str = "auto", trust_remote_code: bool = False
) -> tuple[PeftModel, PreTrainedTokenizerBase]:
    """The unlearned model of a run, ready to use: its base with the adapter on, and the tokenizer.

    Args:
        run: Run directory or adapter folder.
        model: The base model; the one that the adapter names when None.
        dtype: `float32`, `bfloat16` or `auto`.
        device: `auto`, `cpu`, `cuda` ...
        trust_remote_code: Run code that comes with the model.

    Raises:
        ModelError: Base or adapter cannot be loaded or do not fit each other.
    """
    name = model or base_name(str(adapter_folder(run)))
    loaded = load_model(name, dtype=dtype, device=device, trust_remote_code=trust_remote_code)
    attach_adapter(loaded, run)
    return loaded.model, loaded.tokenizer


@contextmanager
def scaled(model: torch.nn.Module, factor: float) -> Iterator[None]:
    """The model with its adapter times `factor`."""
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    own = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            layer.scaling.update({name: factor * value for name, value in layer.scaling.items()})
        yield
    finally:
        for layer, values in zip(layers, own, strict=True):
            layer.scaling.update(values)


def set_alpha(model: torch.nn.Module, alpha: float) -> None:
    """Give the adapter another alpha, in its layers and in what is saved."""
    for own in getattr(model, "peft_config", {}).values():
        own.lora_alpha = alpha
    for module in model.modules():
        if isinstance(module, LoraLayer):
            module.scaling.update({name: alpha / module.r[name] for name in module.scaling})
