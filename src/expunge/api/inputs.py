"""What Python gives in memory, as settings name it: texts under a name that carries them, a model by its folder.

Texts stay in memory: a run directory never holds them. A model is known by the folder or Hub name that it came from,
where the same weights, configuration and tokenizer are; else it is written beside the run, since an adapter without
its base is of no use. The object itself is left as it is.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel, PreTrainedTokenizerBase

from expunge.data.readers import InMemory, dataset_rows
from expunge.errors import ConfigError, DataError, ModelError
from expunge.model.export import match_names
from expunge.model.files import weight_headers
from expunge.model.load import load_tokenizer
from expunge.model.tokenizer_files import rules
from expunge.runs.reads import model_folders
from expunge.utils import folders
from expunge.utils.progress import Reporter
from expunge.utils.ranks import launched
from expunge.utils.text import did_you_mean

Texts = str | Path | Iterable[Mapping[str, Any] | str]
"""A file or `datasets` name, a `datasets.Dataset`, a data frame, or rows: dicts of columns, or texts without prompt."""
BASE = "-base"
"""Ends the name of the folder beside a run into which a model is written that is in memory alone."""
ABOUT_FILES = {
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
    "pad_token_id",
}
"""What a configuration says of how a model was loaded, not of what it computes."""


def named_texts(name: str, texts: Texts | None) -> str | None:
    """Texts as a setting holds them: the name of a file, or a name that carries the rows.

    Raises:
        DataError: They are none of `Texts`.
    """
    if isinstance(texts, Path):  # never looked up as the name of a data set
        return str(texts if texts.exists() else texts.absolute())
    if texts is None or isinstance(texts, str):
        return texts
    rows: Any = texts
    if hasattr(rows, "with_format"):  # a Dataset or DatasetDict
        if isinstance(rows, Mapping) and len(rows) > 1:
            raise DataError(f"{name}: is a DatasetDict with the splits {', '.join(map(str, rows))}: choose one")
        return InMemory(name, [row for _, row in dataset_rows(rows, None, name)])
    if hasattr(rows, "to_dict") and hasattr(rows, "columns"):  # a data frame; a column of one is a list of texts
        if len(set(rows.columns)) < len(rows.columns):
            raise DataError(f"{name}: two columns have the same name")
        rows = _records(rows.to_dicts() if hasattr(rows, "to_dicts") else rows.to_dict("records"))
    if isinstance(rows, Mapping) or not isinstance(rows, Iterable):
        raise DataError(f"{name}: is a {type(rows).__name__}: give a file, a data set or a list of rows")
    return InMemory(name, [_row(row, f"{name}, row {number}") for number, row in enumerate(rows, 1)])


def _records(rows: Any) -> Any:
    """The rows of a data frame: arrays in their cells as lists, and no cell where a table has NaN for none."""
    if hasattr(rows, "tolist"):
        rows = rows.tolist()
    if isinstance(rows, list | tuple):
        return [_records(entry) for entry in rows]
    if isinstance(rows, Mapping):
        return {name: value for name, entry in rows.items() if (value := _records(entry)) is not None}
    return None if isinstance(rows, float) and math.isnan(rows) else rows


def given_texts(**texts: Texts | None) -> dict[str, str]:
    """Settings of the sets that are given, as `named_texts` names them."""
    named = {name: named_texts(name, value) for name, value in texts.items()}
    return {name: value for name, value in named.items() if value is not None}


def _row(row: Mapping[str, Any] | str, where: str) -> dict[str, Any]:
    if isinstance(row, str):
        return {"text": row}
    if not isinstance(row, Mapping) or not all(isinstance(key, str) for key in row):
        raise DataError(f"{where}: is no text and no dict of named columns but {type(row).__name__}")
    return dict(row)


def named_model(
    model: str | Path | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    output: str | None,
    reporter: Reporter,
    *,
    trust_remote_code: bool = False,
) -> dict[str, str]:
    """The settings `model` and `revision` of a model that may be in memory.

    Args:
        model: A folder, a Hub name or a model.
        tokenizer: Of a model in memory; that of the folder that it came from when None.
        output: The run directory; a model that no folder holds is written to `OUTPUT-base`. None: it is refused.
        reporter: Where it is said what was written.
        trust_remote_code: Run code that comes with the model.

    Raises:
        ConfigError: It cannot be named, it runs code of its own that is not trusted, or there is another model at the
            place where it would be written.
    """
    if isinstance(model, str | Path):
        if tokenizer and not _same_tokenizer(tokenizer, str(model), trust_remote_code=trust_remote_code):
            raise ConfigError(f"tokenizer: is not that of {model}: save it there, or give the model as an object too")
        return {"model": str(model)}
    _check_object(model, trust_remote_code=trust_remote_code)
    name, commit = model.name_or_path, getattr(model.config, "_commit_hash", None)
    if name and holds(name, model, tokenizer, trust_remote_code=trust_remote_code):
        return {"model": name} | ({"revision": commit} if commit and not Path(name).exists() else {})
    if output is None:
        raise ConfigError("model: no folder holds this model: model.save_pretrained(FOLDER), and give the folder")
    if tokenizer is None:
        if not name:
            raise ConfigError("tokenizer is missing: this model has no name that it could be found by")
        tokenizer = load_tokenizer(name, trust_remote_code=trust_remote_code)
    place = Path(f"{Path(output)}{BASE}")  # beside `runs/one/`, too
    if not place.exists():
        with folders.temporary_folder(place) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
        reporter.say(f"model: what is in memory is in no folder yet; it is written to {place}, the adapter's base")
    elif not holds(str(place), model, tokenizer, trust_remote_code=trust_remote_code):
        raise ConfigError(f"{place} holds another model than the one that was given: move it, or give another output")
    return {"model": str(place)}


def _check_object(model: Any, *, trust_remote_code: bool) -> None:
    if isinstance(model, PeftModel):
        raise ConfigError("model: is a PeftModel: give the folder of its adapter, or model.merge_and_unload()")
    if not isinstance(model, PreTrainedModel):
        raise ConfigError(f"model: is a {type(model).__name__}: give a folder, a Hub name or a transformers model")
    if not trust_remote_code and type(model).__module__.startswith("transformers_modules."):
        raise ConfigError("model: runs code that came with it: give trust_remote_code=True")
    if getattr(model, "quantization_method", None) is not None:
        raise ConfigError("model: its weights are quantized: give its name, and load_in_4bit=True")
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ConfigError("model: some of its weights are not in memory: give its name")
    if launched():
        raise ConfigError("model: several processes cannot share one that is in memory: give its folder or Hub name")


def holds(
    name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, *, trust_remote_code: bool = False
) -> bool:
    """Whether a folder or Hub name leads to the same model: weights (as the model's dtype holds them), configuration,
    and tokenizer where one is given.
    """
    place = next(iter(model_folders(name)), None)
    if place is None or not (place / "config.json").is_file():
        return False
    theirs = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
    if type(theirs) is not type(model.config) or _computing(theirs.to_dict()) != _computing(model.config.to_dict()):
        return False
    if tokenizer is not None and not _same_tokenizer(tokenizer, name, trust_remote_code=trust_remote_code):
        return False
    try:
        return _same_weights(place, model.state_dict())
    except ModelError:  # none in safetensors format, or of other shapes
        return False


def _computing(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _computing(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in ABOUT_FILES
    }


def _same_weights(folder: Path, weights: Mapping[str, Tensor]) -> bool:
    found = set()
    for file, header in weight_headers(folder).items():
        shapes = {key: entry["shape"] for key, entry in header.items()}
        pairs = match_names(shapes, {key: list(tensor.shape) for key, tensor in weights.items()})
        with safe_open(file, framework="pt") as tensors:
            for key, name in pairs.items():
                if not torch.equal(tensors.get_tensor(key).to(weights[name].dtype), weights[name].cpu()):
                    return False
                found.add(weights[name].data_ptr())  # tied weights stand in a file once
    return all(tensor.data_ptr() in found for tensor in weights.values())


def _same_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str, *, trust_remote_code: bool) -> bool:
    """Whether a tokenizer is the one that a model's name leads to."""
    try:
        other = load_tokenizer(name, trust_remote_code=trust_remote_code)
    except ModelError:
        return False
    return rules(tokenizer) == rules(other)


def checked(schema: type, **settings: Any) -> Any:
    """A config of these settings.

    Raises:
        ConfigError: A name that it does not have.
    """
    known = [field.name for field in dataclasses.fields(schema)]
    for name in settings:
        if name not in known:
            raise ConfigError(f"unknown setting {name}{did_you_mean(name, known)}")
    return schema(**settings)
