"""A tokenizer as files: those that it was read from, so that whatever reads the base reads what comes of it."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import try_to_load_from_cache
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from expunge.errors import ModelError
from expunge.model.load import LoadedModel
from expunge.model.source import Source
from expunge.utils.reading import read_object

CONFIG, FAST = "tokenizer_config.json", "tokenizer.json"
NAMES = (
    CONFIG, FAST, "special_tokens_map.json", "added_tokens.json", "chat_template.json", "*.jinja",
    "tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "tekken.json",
)  # fmt: skip
"""What a tokenizer may be read from, beside the files that its class names."""
PATHS = {"name_or_path", "special_tokens_map_file", "tokenizer_file"}
"""Fields in which old releases of transformers wrote where the files lay."""


def tokenizer_files(folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[Path]:
    """The files of a model's folder that a tokenizer like this one may be read from."""
    names = (*NAMES, *map(str, tokenizer.vocab_files_names.values()))
    found = (*folder.iterdir(), *folder.glob("additional_chat_templates/*"))
    return [path for path in found if path.is_file() and any(map(path.match, names))]


def write_tokenizer(loaded: LoadedModel, folder: Path) -> None:
    """Write a model's tokenizer as the files that it was read from.

    What transformers 5 writes itself, transformers 4 cannot read. It is written where there are no such files (GGUF),
    for a tokenizer with code of its own, and where the files are read otherwise in `folder`, as an adapter's are
    without the model's configuration beside them.

    Args:
        loaded: The model.
        folder: Where to; it exists, with no tokenizer in it.
    """
    tokenizer, origin, copied = loaded.tokenizer, _origin(loaded.source), []
    if origin is not None and not type(tokenizer).__module__.startswith("transformers_modules."):
        copied = _copy(origin, folder, tokenizer)
    if not copied or not _reads_alike(folder, tokenizer):
        for file in copied:
            file.unlink()
        tokenizer.save_pretrained(folder)


def misread(loaded: LoadedModel, texts: Sequence[str]) -> int:
    """How many texts the loaded tokenizer splits otherwise than the model's own tokenizer.json does.

    For some model types transformers makes rules of its own from the vocabulary, whatever stands in that file.
    """
    origin = _origin(loaded.source)
    if origin is None or not (origin / FAST).is_file():
        return 0
    written = PreTrainedTokenizerFast(tokenizer_file=str(origin / FAST))
    pair = (tokenizer([*texts], add_special_tokens=False)["input_ids"] for tokenizer in (written, loaded.tokenizer))
    return sum(ids != others for ids, others in zip(*pair, strict=True))


def _origin(source: Source) -> Path | None:
    """The folder that a model's tokenizer was read from; None where no folder has its files."""
    if source.own_tokenizer or source.gguf:
        return source.own_tokenizer
    if Path(source.base).is_dir():
        return Path(source.base)
    cached = try_to_load_from_cache(source.base, CONFIG, revision=source.revision)
    return Path(cached).parent if isinstance(cached, str) else None


def _copy(origin: Path, folder: Path, tokenizer: PreTrainedTokenizerBase) -> list[Path]:
    """The files in `folder`."""
    copied = []
    for path in tokenizer_files(origin, tokenizer):
        place = folder / path.relative_to(origin)
        place.parent.mkdir(exist_ok=True)
        copied.append(shutil.copyfile(path, place))
    if (config := folder / CONFIG) in copied:
        settings = read_object(config, ModelError)
        if settings.keys() & PATHS:
            kept = {key: value for key, value in settings.items() if key not in PATHS}
            config.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return copied


def _reads_alike(folder: Path, tokenizer: PreTrainedTokenizerBase) -> bool:
    try:
        other = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except Exception:  # what is missing without the configuration has no bounds
        return False
    return rules(other) == rules(tokenizer)


def rules(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """What a tokenizer does, as far as it can be compared."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    state = json.loads(backend.to_str()) if backend is not None else {"class": type(tokenizer).__name__}
    return {
        "vocabulary": tokenizer.get_vocab(),
        "rules": {key: value for key, value in state.items() if key not in ("truncation", "padding")},
        "special": {key: str(value) for key, value in tokenizer.special_tokens_map.items() if key != "pad_token"},
        "template": tokenizer.chat_template,
    }
