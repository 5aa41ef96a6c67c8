"""What a model folder declares, compared with the weights that it holds, before anything of that size is made."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from expunge.errors import ModelError
from expunge.utils.reading import NUMBER, Each, UnreadableError, check_fields, read_object

COUNTS = re.compile(r"^(?!.*_(size|dim|rank)$)(.*_)?n?(layers?|experts?|heads?|blocks?|stages?|depth|groups?)($|_)")
"""Settings that say how many parts there are; a size of experts is none."""
MOST_PARTS = 4096
MOST_MODULES = 200_000
"""Layers times experts: more than any model has, and few enough to be made without their weights."""
PACKED = 16
"""Values of a model to one that its files store: 4-bit weights in 32-bit words have 8, tied weights 2."""
BUFFERS = 2**28
"""Values of buffers (masks, tables of positions) beside the weights."""
LIBRARY = ("_attn_implementation", "attn_implementation", "_experts_implementation", "experts_implementation")
"""Settings that choose code to compute with, which is ours to choose."""
OTHER_PLACES = (
    "_name_or_path", "name_or_path", "base_model_name_or_path", "_commit_hash", "special_tokens_map_file",
)  # fmt: skip
"""Settings that say where something came from; nothing is read from there."""
MOST_RANK = 2**16
LORA = ("LORA", "ADALORA")
"""Kinds of adapters whose rank and alpha are read here; others have a rank and no alpha, or a rank of 0."""


def check_folder(folder: Path, headers: Iterable[Mapping[str, Any]]) -> None:
    """Compare the settings files of a model folder with its weights, before a library reads them.

    Args:
        folder: The model folder.
        headers: Those of its weight files: name -> dtype and shape.

    Raises:
        ModelError: A file cannot be read, declares more parts than there are weights, names a weight file or code of
            its own choice, or a file outside of the folder.
    """
    tensors = sum(map(len, headers))
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        if not (folder / name).exists():
            continue
        parts: dict[str, int] = {"layer": 1, "expert": 1}
        for key, value in _settings(read_object(folder / name, ModelError)):
            where = f"--model {folder}: {name}"
            if key == "transformers_weights":
                raise ModelError(f"{where} names a weight file of its own choice ({key}): take that out")
            if key in LIBRARY and isinstance(value, str) and re.search(r"[/:@\\]", value):
                raise ModelError(f"{where} names code to compute with ({key}): take that out")
            if _leads_out(folder, key, value):
                raise ModelError(f"{where} names a file outside of the folder ({key}: {value}): take that out")
            if name == "config.json" and COUNTS.search(key) and isinstance(value, int):
                most = tensors if key in ("num_hidden_layers", "n_layer", "n_layers", "num_layers") else MOST_PARTS
                if value > most:
                    raise ModelError(f"{where} declares {key} = {value:,}, and the files hold {tensors:,} weights")
                for part in parts:
                    parts[part] = max(parts[part], value if part in key else 1)
        if parts["layer"] * parts["expert"] > MOST_MODULES:
            raise ModelError(f"--model {folder}: {name} declares more layers and experts than any model has")


def check_size(name: str, config: PretrainedConfig, headers: Iterable[Mapping[str, Any]]) -> None:
    """Compare the sizes that a configuration leads to with those of the files: the model is made without its weights.

    Raises:
        ModelError: It would have many times the values that the files hold.
    """
    stored = sum(torch.Size(entry["shape"]).numel() for header in headers for entry in header.values())
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except Exception as error:  # what odd settings can make of a library has no bounds
        raise ModelError(f"--model {name}: cannot be made from its config.json ({type(error).__name__})") from None
    wanted = sum(parameter.numel() for parameter in model.parameters())
    buffers = sum(buffer.numel() for buffer in model.buffers())
    if wanted > PACKED * stored or buffers > PACKED * stored + BUFFERS:
        raise ModelError(
            f"--model {name}: its config.json declares a model of {wanted + buffers:,} values, and its files hold "
            f"{stored:,}: they do not belong together"
        )


def check_adapter_config(folder: Path, header: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an adapter, once they are of the kinds and the rank that its weights have.

    Args:
        folder: The adapter folder.
        header: That of its weight file: name -> dtype and shape.

    Raises:
        ModelError: They are not.
    """
    path = folder / "adapter_config.json"
    settings = read_object(path, ModelError)
    largest = max((size for entry in header.values() for size in entry["shape"]), default=0)
    try:
        check_fields(settings, {"base_model_name_or_path?": (str, type(None))})
        lora = settings.get("peft_type", "LORA") in LORA
        if "r" in settings:
            check_fields(settings, {"r": int, **({"lora_alpha": NUMBER} if lora else {})})
        for name, kind in (("rank_pattern", int), ("alpha_pattern", NUMBER)):
            check_fields(settings.get(name) or {}, Each(kind), name)
        ranks = [settings.get("r", 1), *(settings.get("rank_pattern") or {}).values()]
        least, most = (1, min(largest, MOST_RANK)) if lora else (0, MOST_RANK)  # others may have a rank above, or none
        if not all(least <= rank <= most for rank in ranks):
            raise UnreadableError("its rank is not that of its weights")
        for key, value in _settings(settings):
            if _leads_out(folder, key, value):
                raise UnreadableError(f"{key} names a file outside of the folder")
    except UnreadableError as error:
        raise ModelError(f"{path}: {error}: the adapter is damaged or from somewhere else") from None
    return settings


def _settings(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in nested settings with the key that it stands under."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _settings(value, str(name))
    elif isinstance(content, list):
        for value in content:
            yield from _settings(value, key)
    else:
        yield key, content


def _leads_out(folder: Path, key: str, value: Any) -> bool:
    """Whether a setting is the path of something that is there and can be read, outside of the folder.

    A folder cannot: `/` is a token of some. Files from the Hub are links to those beside the snapshots.
    """
    if not isinstance(value, str) or key in OTHER_PLACES or "/" not in value or len(value) > 4096 or "\0" in value:
        return False
    path = folder / value
    try:
        root = folder.resolve()
        inside = [root, root.parents[1] / "blobs"] if root.parent.name == "snapshots" else [root]
        return path.exists() and not path.is_dir() and not any(map(path.resolve().is_relative_to, inside))
    except (OSError, ValueError):
        return False
