"""Adapters as pairs of matrices, and several of them as one: their ranks side by side, which is exact."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Conv1d, Embedding, Linear, ParamWrapper
from torch import Tensor
from torch.nn.functional import pad

PREFIX = "base_model.model."


@dataclass(frozen=True)
class Pair:
    """One layer's part of an adapter: it adds `up @ down` to the layer's weight.

    Attributes:
        down: `(experts, rank, in)`; one expert for a plain layer.
        up: `(out, rank, experts)`, times the adapter's scale.
    """

    down: Tensor
    up: Tensor

    @property
    def rank(self) -> int:
        """Its rank."""
        return self.down.shape[1]


Pairs = dict[str, Pair]
"""Full name of a layer in the PEFT model -> its pair."""


def pairs_of(model: PeftModel) -> Pairs | None:
    """The pairs of an adapter in a model; None where it is more than they are (DoRA, biases, saved modules, ...)."""
    config = model.peft_config["default"]
    if type(config) is not LoraConfig or config.bias != "none" or config.modules_to_save or config.layer_replication:
        return None
    if config.use_dora or config.lora_bias or config.trainable_token_indices or config.target_modules is None:
        return None
    found: Pairs = {}
    for name, layer in model.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        if isinstance(layer, Embedding | Conv1d) or not isinstance(layer, Linear | ParamWrapper):
            return None
        if layer.lora_variant:
            return None
        experts = layer.num_experts if isinstance(layer, ParamWrapper) else 1
        sides = (layer.lora_A["default"].get_parameter("weight"), layer.lora_B["default"].get_parameter("weight"))
        down, up = (side.detach().cpu().float() for side in sides)
        found[name] = Pair(
            down.reshape(experts, -1, down.shape[-1]).clone(),
            up.reshape(up.shape[0], -1, experts) * layer.scaling["default"],
        )
    return found


def same_pairs(one: Pairs, other: Pairs) -> bool:
    """Whether two adapters are the same matrices, but for the rounding of their scale and ranks of zeros in `one`."""
    return one.keys() == other.keys() and all(
        _same(pair, _padded(other[name], pair.rank)) for name, pair in one.items()
    )


def _same(one: Pair, other: Pair) -> bool:
    return (
        one.up.shape == other.up.shape
        and torch.equal(one.down, other.down)
        and torch.allclose(one.up, other.up, rtol=1e-5, atol=0.0)
    )


def _padded(pair: Pair, rank: int) -> Pair:
    """A pair with ranks of zeros behind its own, up to `rank`: it adds the same."""
    more = (0, 0, 0, max(0, rank - pair.rank))
    return Pair(pad(pair.down, more), pad(pair.up, more))


def side_by_side(parts: Sequence[Pairs]) -> Pairs:
    """The sum of several adapters: a layer's ranks stand one behind the other."""
    names = dict.fromkeys(name for part in parts for name in part)
    return {
        name: Pair(
            torch.cat([part[name].down for part in parts if name in part], 1),
            torch.cat([part[name].up for part in parts if name in part], 1),
        )
        for name in names
    }


def tensors_of(pairs: Pairs) -> dict[str, Tensor]:
    """The tensors of an adapter file at scale 1."""
    found: dict[str, Tensor] = {}
    for name, pair in pairs.items():
        found[f"{name}.lora_A.weight"] = pair.down.flatten(0, 1).contiguous()
        found[f"{name}.lora_B.weight"] = pair.up.flatten(1, 2).contiguous()
    return found


def as_one(parts: Sequence[Pairs], configs: Sequence[Mapping[str, Any]]) -> tuple[Pairs, dict[str, Any]] | None:
    """The sum of several adapters with the adapter_config.json that goes with it; None where PEFT cannot express it.

    Plain layers get one rank and one alpha, with ranks of zeros where there are fewer: not everything that serves
    adapters reads patterns (llama.cpp divides one alpha by the rank of each tensor).

    Args:
        parts: Pairs of each adapter, the last that of `configs[-1]`.
        configs: What their adapter_config.json files hold.
    """
    last, pairs = dict(configs[-1]), side_by_side(parts)
    last |= {"use_rslora": False, "exclude_modules": None, "layers_to_transform": None, "layers_pattern": None}
    if not any(config.get("target_parameters") for config in configs):
        rank = max(pair.rank for pair in pairs.values())
        last |= {"target_modules": sorted(name.removeprefix(PREFIX) for name in pairs), "target_parameters": None}
        last |= {"r": rank, "lora_alpha": rank, "rank_pattern": {}, "alpha_pattern": {}}
        return {name: _padded(pair, rank) for name, pair in pairs.items()}, last
    if any(set(part) != set(parts[-1]) for part in parts):
        return None
    same = ("target_modules", "target_parameters", "rank_pattern")
    if any(_unordered(config.get(key)) != _unordered(last.get(key)) for config in configs for key in same):
        return None
    rank = sum(config["r"] for config in configs)
    patterns = {key: sum(config["rank_pattern"][key] for config in configs) for key in last.get("rank_pattern") or ()}
    return pairs, last | {"r": rank, "lora_alpha": rank, "rank_pattern": patterns, "alpha_pattern": dict(patterns)}


def _unordered(value: Any) -> Any:
    """Names that a list holds, or a pattern is for."""
    return value if isinstance(value, str) else sorted(value or ())
