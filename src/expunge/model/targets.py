"""Which layers an adapter sits on: those that text reaches, and that LoRA can take."""

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import ParamWrapper
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from expunge.errors import ConfigError
from expunge.model.proof import probe_rows
from expunge.utils.text import comma_list

ATTENTION = ("q_proj", "v_proj")
FUSED_ATTENTION = ("qkv_proj", "query_key_value", "Wqkv", "c_attn")
"""Names of query and value projections, and of those that are one with the key projection."""


@dataclass(frozen=True)
class Targets:
    """Where an adapter goes, as PEFT takes it.

    Attributes:
        modules: `all-linear`, or names of modules.
        left_out: Full names of modules that match and are left out.
        notes: Why, a line each.
    """

    modules: str | list[str]
    left_out: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def choose_targets(model: PreTrainedModel, wanted: str, autocast: AbstractContextManager[None]) -> Targets:
    """What `--target-modules` means for this model.

    `auto` is PEFT's own choice for the architecture, or query and value projections or the fused one that holds them.
    Left out are routers and the like that do not return one tensor, projections by groups of heads, towers that no
    text reaches, and projections whose weights state-space layers read past their modules.

    Args:
        model: The model, with no adapter in it.
        wanted: `all-linear`, `auto`, or names of modules separated by commas.
        autocast: The precision that it computes in.

    Raises:
        ConfigError: PEFT has no choice for the architecture, or a named module is not in the model or cannot be taken.
    """
    linear = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    reasons = _unfit(model, linear, autocast)
    names = None if wanted == "all-linear" else _names(model, wanted, linear)
    matching = [full for full in reasons if names is None or any(_is(full, name) for name in names)]
    for name in names or ():
        found = [full for full in linear if _is(full, name)]
        if wanted != "auto" and all(full in reasons for full in found):
            raise ConfigError(f"--target-modules {wanted}: {name} cannot be adapted: {reasons[found[0]]}")
    notes = []
    for reason in dict.fromkeys(reasons[full] for full in matching):
        leaves = sorted({full.rpartition(".")[2] for full in matching if reasons[full] == reason})
        count = sum(reasons[full] == reason for full in matching)
        notes.append(f"adapter: {count} modules are left out ({', '.join(leaves[:6])}): {reason}")
    return Targets(names or wanted, matching, notes)


def frozen_experts(model: PeftModel) -> list[str]:
    """Names of stacked expert weights that carry no adapter."""
    taken = {
        (id(layer.get_base_layer()), layer.parameter_name)
        for layer in model.modules()
        if isinstance(layer, ParamWrapper)
    }
    return [
        f"{path.removeprefix('base_model.model.')}.{name}"
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.dim() == 3 and min(parameter.shape) > 1  # shorter ones are vectors
        and not isinstance(module, nn.Conv1d) and (id(module), name) not in taken
    ]  # fmt: skip


def _names(model: PreTrainedModel, wanted: str, linear: Mapping[str, nn.Module]) -> list[str]:
    output = model.get_output_embeddings()
    leaves = {full.rpartition(".")[2] for full, module in linear.items() if module is not output}
    if wanted == "auto":
        names = list(TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model.config.model_type) or ATTENTION)
        if not any(name in leaves for name in names):
            names = [name for name in (*ATTENTION, *FUSED_ATTENTION) if name in leaves] or names
    else:
        names = comma_list(wanted)
    for name in names:
        found = [full for full in linear if _is(full, name)]
        if not found:
            there = ", ".join(sorted(leaves))
            raise ConfigError(f"--target-modules {wanted}: the model has no linear module {name}; it has {there}")
        if any(linear[full] is output for full in found):
            raise ConfigError(f"--target-modules {wanted}: {name} is the vocabulary head, which stays frozen")
    return names


def _is(full: str, name: str) -> bool:
    return full == name or full.endswith("." + name)


def _unfit(
    model: PreTrainedModel, linear: Mapping[str, nn.Module], autocast: AbstractContextManager[None]
) -> dict[str, str]:
    """Full name -> why LoRA cannot take a linear module, found out on a few tokens."""
    seen: dict[str, str] = {}

    def look(module: nn.Module, _: Any, output: Any, name: str) -> None:
        size = module.nf if isinstance(module, Conv1D) else module.out_features
        seen[name] = (
            "they return more than one tensor" if not isinstance(output, Tensor)
            else "they multiply parts of their input with parts of their weights" if output.shape[-1] != size
            else ""
        )  # fmt: skip

    handles = [module.register_forward_hook(partial(look, name=name)) for name, module in linear.items()]
    try:
        with torch.no_grad(), autocast:
            model(input_ids=probe_rows(model), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    reached = {_kind(name) for name in seen}  # of many experts, a few tokens reach some
    output = model.get_output_embeddings()
    reasons: dict[str, str] = {}
    for name, module in linear.items():
        parent = model.get_submodule(name.rpartition(".")[0])
        if module is output:
            continue
        if hasattr(parent, "A_log") and hasattr(parent, "D") and not name.rpartition(".")[2].startswith("in_proj"):
            reasons[name] = "state-space layers read their weights past them"
        elif _kind(name) not in reached:
            reasons[name] = "no text reaches them"
        elif seen.get(name):
            reasons[name] = seen[name]
    return reasons


def _kind(name: str) -> str:
    """A module's name with its numbers taken out: what it has in common with those of other layers and experts."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)
