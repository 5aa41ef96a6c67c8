"""A changed model as the checkpoint that it came from: same files, names and dtypes, and what was not touched."""

import json
import shutil
import tempfile
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from expunge.data.words import common_prefix
from expunge.errors import ModelError
from expunge.model.checkpoint import move
from expunge.model.files import INDEX, weight_headers
from expunge.model.load import LoadedModel
from expunge.model.source import Source, downloaded, first_line
from expunge.model.tokenizer_files import NAMES, tokenizer_files, write_tokenizer
from expunge.utils.reading import read_object
from expunge.utils.text import first_few

NOT_CARRIED = ("README.md", "config.json", INDEX, "expunge_merge.json")
"""Files that are written anew."""
NAMED = 10
"""Names of files that a note tells."""
CARRIED = (
    *NAMES, "generation_config.json", "*processor_config.json", "*processor.json", "*quant*_config.json",
    "configuration.json", "config_sentence_transformers.json", "*vocab*.json", "chat_template*.json", "normalizer.json",
    "params.json", "*.index.json", "*.py", "*.model", "*.tiktoken", "*.bpe", "*.spm", "LICEN[CS]E*", "NOTICE*",
    "*POLICY*",
)  # fmt: skip
"""Files that belong to a model, by name alone, since JSON and text of other names may hold anything. What else lies in
its folder (its card, training texts, logs, weights in other formats) is not handed on with one that has forgotten."""


def export(loaded: LoadedModel, folder: Path, dtype: torch.dtype | None) -> list[str]:
    """Write a plain model with everything that belongs to it.

    Args:
        loaded: The model, in fp32, with no adapter in it.
        folder: Where to; it is there and empty.
        dtype: Of all weights; each has that of the base's file when None.

    Returns:
        What was carried over and what was not, a line each.

    Raises:
        ModelError: A tensor has another shape than in the base's files, or the Hub does not give them.
    """
    base = _files_of(loaded.source)
    notes: list[str] = []
    if base is None or read_object(base / "config.json", ModelError).get("quantization_config"):
        _round(loaded.base, base, dtype)
        loaded.base.save_pretrained(folder)
    else:
        notes += _write_weights(loaded, base, folder, dtype)
        _write_config(loaded, base, folder, dtype)
    if base is not None:
        notes += _carry(base, folder, tokenizer_files(base, loaded.tokenizer))
    write_tokenizer(loaded, folder)
    return notes


def _files_of(source: Source) -> Path | None:
    """The base's folder; None where it has no files that could be kept (GGUF)."""
    if source.gguf:
        return None
    if Path(source.base).is_dir():
        return Path(source.base)
    wanted = ["config.json", *CARRIED]  # its weights are there since it was loaded
    try:
        return downloaded(source.base, source.revision, wanted)
    except (OSError, ValueError) as error:  # LocalEntryNotFoundError and HTTP errors among them
        raise ModelError(
            f"{source.base}: its files cannot be read from the Hub ({first_line(error)}), and a merged model "
            "needs what belongs to it (dtypes, tokenizer, licence): try again with a connection"
        ) from error


def _round(model: PreTrainedModel, base: Path | None, dtype: torch.dtype | None) -> None:
    """Round weights that were widened, to bfloat16 where no dtype is asked for.

    What the base's files hold in fp32, or the model's class keeps there (by what routers choose experts), stays so.
    """
    if base is None or dtype is not None:
        move(model, dtype or torch.bfloat16)
        return
    wide = {key for header in weight_headers(base).values() for key, entry in header.items() if entry["dtype"] == "F32"}
    parts = model._keep_in_fp32_modules_strict or ()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        kept = name in wide or any(f".{part}." in f".{name}." for part in parts)
        if tensor.is_floating_point() and not kept:
            tensor.data = tensor.data.to(torch.bfloat16)


def _write_weights(loaded: LoadedModel, base: Path, folder: Path, dtype: torch.dtype | None) -> list[str]:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        parts = Path(name)
        loaded.base.save_pretrained(parts)
        written, headers = weight_headers(parts), weight_headers(base)
        places = {key: file for file, header in written.items() for key in header}
        pairs = match_names(_shapes(headers), _shapes(written))
        added = {key: _read(places[key], key) for key in set(places) - set(pairs.values())}
        carried = 0
        for file in headers:
            tensors: dict[str, Tensor] = {}
            with safe_open(file, framework="pt") as old:
                metadata = old.metadata()
                for key in old.keys():  # noqa: SIM118
                    tensor = old.get_tensor(key)
                    if key in pairs:
                        tensors[key] = _read(places[pairs[key]], pairs[key]).to(dtype or tensor.dtype).contiguous()
                    else:
                        tensors[key], carried = tensor, carried + 1
            kind = dtype or next(
                (tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), torch.float32
            )
            tensors |= {key: tensor.to(kind).contiguous() for key, tensor in added.items()}
            save_file(tensors, folder / file.name, metadata=metadata or {"format": "pt"})
            if added:
                _index(base, folder, dict.fromkeys(added, file.name))
            added = {}
    return [f"{carried} tensors that the model does not use are carried over as they are"] if carried else []


def _shapes(headers: Mapping[Path, Mapping[str, Any]]) -> dict[str, Any]:
    return {key: entry["shape"] for header in headers.values() for key, entry in header.items()}


def match_names(there: Mapping[str, Any], written: Mapping[str, Any]) -> dict[str, str]:
    """Name in the base's files -> name in the model's, by name and shape.

    A class that takes a part of a checkpoint writes that part without the prefix that it has there.

    Raises:
        ModelError: A name is there with another shape.
    """
    pairs = {name: name for name in written if name in there}
    for name in pairs:
        if there[name] != written[name]:
            raise ModelError(f"the base's tensor {name} has shape {there[name]}, the merged one {written[name]}")
    free = [name for name in there if name not in pairs]
    for name in written:
        if name in pairs:
            continue
        alike = [other for other in free if there[other] == written[name] and _tail(other, name) >= 2]
        if alike:
            best = max(alike, key=lambda other: (_tail(other, name), common_prefix(other.split("."), name.split("."))))
            pairs[best] = name
            free.remove(best)
    return pairs


def _tail(first: str, second: str) -> int:
    """Parts of two dotted names that are the same from the end."""
    return common_prefix(first.split(".")[::-1], second.split(".")[::-1])


def _read(file: Path, key: str) -> Tensor:
    with safe_open(file, framework="pt") as tensors:
        tensor: Tensor = tensors.get_tensor(key)
        return tensor


def _index(base: Path, folder: Path, added: Mapping[str, str]) -> None:
    """Tensors that the base has not, as a head that is no longer tied, in the index of a model in several files."""
    if (base / INDEX).exists():
        index = read_object(base / INDEX, ModelError)
        index["weight_map"] |= added
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n")


def _write_config(loaded: LoadedModel, base: Path, folder: Path, dtype: torch.dtype | None) -> None:
    """The base's configuration, save the dtype and the tie of the head where those are others now."""
    config = read_object(base / "config.json", ModelError)
    tied = bool(getattr(loaded.base.config.get_text_config(), "tie_word_embeddings", False))
    for part in (config, config.get("text_config")):
        if not isinstance(part, dict):
            continue
        part.pop("_name_or_path", None)  # where somebody had it
        if dtype is not None:
            part |= {key: str(dtype).removeprefix("torch.") for key in ("dtype", "torch_dtype") if key in part}
        if part.get("tie_word_embeddings", True) != tied:  # a file that leaves it out may mean either
            part["tie_word_embeddings"] = tied
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _carry(base: Path, folder: Path, tokenizer: Container[Path]) -> list[str]:
    """Copy what belongs to the base beside its weights and its tokenizer: processors, code, licence."""
    left_out: list[str] = []
    for path in _all_files(base):
        place = folder / path.relative_to(base)
        if place.exists() or path.name in NOT_CARRIED or path in tokenizer:
            continue
        if not any(map(path.match, CARRIED)):
            left_out.append(str(path.relative_to(base)))
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    if (base / INDEX).exists() and not (folder / INDEX).exists() and not (folder / "model.safetensors").exists():
        shutil.copyfile(base / INDEX, folder / INDEX)
    why = "are left out, they are no part of a model, or other weights, which hold what was forgotten"
    return [f"{len(left_out)} files {why} ({first_few(left_out, NAMED)})"] if left_out else []


def _all_files(base: Path) -> Iterable[Path]:
    for path in sorted(base.iterdir()):
        if path.name.startswith((".", "checkpoint-")):  # the latter as a training leaves them
            continue
        if path.is_dir():
            yield from (file for file in sorted(path.rglob("*")) if file.is_file())
        elif path.is_file():
            yield path
