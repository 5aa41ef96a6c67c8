"""A changed model as the checkpoint that it came from: same files, names and dtypes, and what was not touched."""

import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import snapshot_download
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from expunge.errors import ModelError
from expunge.model.checkpoint import move, quantization
from expunge.model.files import INDEX, weight_headers
from expunge.model.load import LoadedModel
from expunge.model.source import Source, first_line
from expunge.model.tokenizer_files import CONFIG, tokenizer_files, write_tokenizer
from expunge.utils.reading import card_metadata, read_object
from expunge.utils.text import first_few

WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".gguf", ".ot", ".pkl")
"""Endings of files that hold weights: those that the model was not loaded from hold what was to be forgotten."""
NOT_CARRIED = ("README.md", "BASE_README.md", "config.json", INDEX, "expunge_merge.json")
"""Files that are written anew."""
NAMED = 10
"""Names of files that a note tells."""
CARRIED = (
    "generation_config.json", "*processor_config.json", "*processor.json", "*quant*_config.json", "configuration.json",
    "config_sentence_transformers.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "*vocab*.json", "chat_template*.json", "tekken.json", "normalizer.json", "params.json",
    "*.index.json", "*.py", "*.jinja", "*.model", "*.tiktoken", "*.bpe", "*.spm", "merges.txt", "vocab.txt",
    "LICEN[CS]E*", "NOTICE*", "*POLICY*",
)  # fmt: skip
"""Files that belong to a model, by name alone, since JSON and text of other names may hold anything. What else lies in
its folder (training texts, logs) is not handed on with one that has forgotten them."""
BASE_CARD = "BASE_README.md"
"""In a merged model: the head of the first base's card, without its prose, which may quote what is forgotten."""
OF_CARDS = (
    "license", "license_name", "license_link", "language", "base_model", "base_model_relation", "library_name",
    "pipeline_tag", "tags", "datasets",
)  # fmt: skip
"""Fields of that."""


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
    source = loaded.source
    assert source is not None
    base = _files_of(source)
    notes: list[str] = []
    if base is None or quantization(loaded.base.config) or _quantized(base):
        move(loaded.base, dtype or torch.bfloat16)
        loaded.base.save_pretrained(folder)
    else:
        notes += _write_weights(loaded, base, folder, dtype)
        _write_config(loaded, base, folder, dtype)
    carries = source.own_tokenizer is None and base is not None and (base / CONFIG).exists()
    if base is not None:
        notes += _carry(base, folder, tokenizer_files(base, loaded.tokenizer), with_tokenizer=carries)
    if not carries:
        write_tokenizer(loaded, folder)
    return notes


def _files_of(source: Source) -> Path | None:
    """The base's folder; None where it has no files that could be kept (GGUF)."""
    if source.gguf:
        return None
    if Path(source.base).is_dir():
        return Path(source.base)
    unread = [f"*{ending}" for ending in WEIGHTS if ending != ".safetensors"]
    try:
        return Path(snapshot_download(source.base, revision=source.revision, ignore_patterns=unread))
    except (OSError, ValueError) as error:  # LocalEntryNotFoundError and HTTP errors among them
        raise ModelError(
            f"{source.base}: its files cannot be read from the Hub ({first_line(error)}), and a merged model "
            "needs what belongs to it (dtypes, tokenizer, licence): try again with a connection"
        ) from error


def _quantized(base: Path) -> bool:
    return bool(read_object(base / "config.json", ModelError).get("quantization_config"))


def _write_weights(loaded: LoadedModel, base: Path, folder: Path, dtype: torch.dtype | None) -> list[str]:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        parts = Path(name)
        loaded.base.save_pretrained(parts)
        written, headers = weight_headers(parts), weight_headers(base)
        own = {key: file for file, header in written.items() for key in header}
        pairs = match_names(_shapes(headers), _shapes(written))
        added = {key: _read(own[key], key) for key in set(own) - set(pairs.values())}
        carried = 0
        for file in headers:
            tensors: dict[str, Tensor] = {}
            with safe_open(file, framework="pt") as old:
                metadata = old.metadata()
                for key in old.keys():  # noqa: SIM118
                    tensor = old.get_tensor(key)
                    if key in pairs:
                        tensors[key] = _read(own[pairs[key]], pairs[key]).to(dtype or tensor.dtype).contiguous()
                    else:
                        tensors[key], carried = tensor, carried + 1
            kind = dtype or next((own.dtype for own in tensors.values() if own.is_floating_point()), torch.float32)
            tensors |= {key: tensor.to(kind).contiguous() for key, tensor in added.items()}
            save_file(tensors, folder / file.name, metadata=metadata or {"format": "pt"})
            if added:
                _index(base, folder, dict.fromkeys(added, file.name))
            added = {}
    return [f"{carried} tensors that the model does not use are carried over as they are"] if carried else []


def _shapes(headers: Mapping[Path, Mapping[str, Any]]) -> dict[str, Any]:
    return {key: entry["shape"] for header in headers.values() for key, entry in header.items()}


def match_names(there: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, str]:
    """Name in the base's files -> name in the model's, by name and shape.

    A class that takes a part of a checkpoint writes that part without the prefix that it has there.

    Raises:
        ModelError: A name is there with another shape.
    """
    pairs = {name: name for name in own if name in there}
    for name in pairs:
        if there[name] != own[name]:
            raise ModelError(f"the base's tensor {name} has shape {there[name]}, the merged one {own[name]}")
    free = [name for name in there if name not in pairs]
    for name in own:
        if name in pairs:
            continue
        alike = [other for other in free if there[other] == own[name] and _tail(other, name) >= 2]
        if alike:
            best = max(alike, key=lambda other: (_tail(other, name), _head(other, name)))
            pairs[best] = name
            free.remove(best)
    return pairs


def _tail(first: str, second: str) -> int:
    """Parts of two dotted names that are the same from the end."""
    return _head(".".join(reversed(first.split("."))), ".".join(reversed(second.split("."))))


def _head(first: str, second: str) -> int:
    pairs = list(zip(first.split("."), second.split("."), strict=False))
    return next((at for at, (a, b) in enumerate(pairs) if a != b), len(pairs))


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
        if part.get("tie_word_embeddings", tied) != tied:
            part["tie_word_embeddings"] = tied
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _carry(base: Path, folder: Path, tokenizer: Sequence[Path], *, with_tokenizer: bool) -> list[str]:
    """Copy what belongs to the base beside its weights: processors, code, licence, and the files of its tokenizer."""
    weights: list[str] = []
    others: list[str] = []
    for path in _all_files(base):
        place = folder / path.relative_to(base)
        if place.exists() or path.name in NOT_CARRIED or (path in tokenizer and not with_tokenizer):
            continue
        if path.suffix in WEIGHTS or not (path in tokenizer or any(map(path.match, CARRIED))):
            (weights if path.suffix in WEIGHTS else others).append(str(path.relative_to(base)))
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)
    if (base / INDEX).exists() and not (folder / INDEX).exists() and not (folder / "model.safetensors").exists():
        shutil.copyfile(base / INDEX, folder / INDEX)
    card = next((own for own in (base / BASE_CARD, base / "README.md") if own.is_file()), None)
    if card is not None:
        (folder / BASE_CARD).write_text(_card_head(card), encoding="utf-8")
    why = {
        "with other weights are left out, they hold what was forgotten": weights,
        "are left out, they are no part of a model": others,
    }
    told = [f"{len(names)} files {told} ({first_few(names, NAMED)})" for told, names in why.items() if names]
    return [*told, *([f"of the base's README.md only its metadata is handed on ({BASE_CARD})"] if card else [])]


def _card_head(card: Path) -> str:
    """What a model card says in its head, as a head; empty fields where it says nothing that can be read."""
    fields = {name: own for name, own in card_metadata(card).items() if name in OF_CARDS and _plain(own)}
    return f"---\n{yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)}---\n"


def _plain(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, list) and all(isinstance(own, str) for own in value))


def _all_files(base: Path) -> Iterable[Path]:
    for path in sorted(base.iterdir()):
        if path.name.startswith((".", "checkpoint-")):  # the latter as a training leaves them
            continue
        if path.is_dir():
            yield from (own for own in sorted(path.rglob("*")) if own.is_file())
        elif path.is_file():
            yield path
