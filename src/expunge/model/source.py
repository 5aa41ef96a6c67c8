"""Where a model's name leads: a folder, a Hub name, a GGUF file, or an adapter on one of them or on another adapter."""

from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from huggingface_hub import constants, snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

from expunge.errors import ModelError
from expunge.model.declared import check_adapter_config, check_folder
from expunge.model.files import INDEX, SINGLE, header_of, shard_names, weight_headers
from expunge.utils.reading import read_object

ADAPTER_FILE = "adapter_model.safetensors"
ADAPTER_PARTS = ["adapter_*.json", ADAPTER_FILE, "*token*.json", "*token*.model", "vocab*", "merges.txt", "*.jinja"]
"""Files of an adapter on the Hub: beside it may lie a whole model."""
BASE = "base"
"""Folder in an adapter that stands on one which cannot be put beside it: the model with that one folded in."""
DEEPEST = 16
"""Adapters that may stand on each other: more is a circle."""


@dataclass(frozen=True)
class Source:
    """What a model is made of.

    Attributes:
        name: As the user gave it.
        base: The model itself: a folder or a Hub name.
        gguf: Name of the GGUF file in the folder `base` that holds weights, configuration and tokenizer, or None.
        adapters: Adapter folders on the base, in the order in which they are folded in.
        revision: Revision of a Hub name, or None; the commit once it is loaded.
    """

    name: str
    base: str
    gguf: str | None = None
    adapters: list[Path] = field(default_factory=list)
    revision: str | None = None

    @property
    def base_name(self) -> str:
        """The base as it was named."""
        return str(Path(self.base) / self.gguf) if self.gguf else self.base

    @property
    def on_the_hub(self) -> bool:
        """Whether the name itself, a model's or an adapter's, is one on the Hub."""
        return not Path(self.name).exists()

    @property
    def own_tokenizer(self) -> Path | None:
        """The last of the adapters with a tokenizer of its own, which counts then; None where the base's does."""
        return next(
            (adapter for adapter in reversed(self.adapters) if (adapter / "tokenizer_config.json").exists()), None
        )

    @property
    def options(self) -> dict[str, Any]:
        """What `from_pretrained` of configuration, tokenizer and model take beside the base."""
        return {"revision": self.revision} | ({"gguf_file": self.gguf} if self.gguf else {})

    @property
    def where(self) -> str:
        """The base, for messages: the user may never have named it."""
        if not self.adapters:
            return f"--model {self.base_name}"
        return f"--model {self.name}: its base {self.base_name} (named in {self.adapters[0] / 'adapter_config.json'})"


def source_of(name: str, revision: str | None = None) -> Source:
    """Follow a name to the model that it stands on; a run directory means the adapter in it.

    Raises:
        ModelError: An adapter on the way has no weights, names no base, or a folder holds several GGUF files; a
            revision of a folder is asked for.
    """
    adapters: list[Path] = []
    if not (Path(name) / "config.json").exists() and (Path(name) / "adapter" / "adapter_config.json").exists():
        name = str(Path(name) / "adapter")
    place, asked = name, revision
    while (folder := _adapter_at(place, revision)) is not None:
        if len(adapters) == DEEPEST:
            raise ModelError(f"--model {name}: more than {DEEPEST} adapters stand on each other: is it a circle?")
        if not Path(place).exists():  # an adapter on the Hub: what was asked for is its own revision
            revision = asked = None
        check_adapter(folder)
        adapters.insert(0, folder)
        settings = read_object(folder / "adapter_config.json", ModelError)
        place = _base_of(folder, settings)
        revision = revision or _revision_of(folder, settings)
    gguf = _gguf_file(place)
    base = str(Path(place).parent) if gguf and Path(place).is_file() else place
    if asked and Path(base).exists():
        raise ModelError(f"--revision {asked}: {base} is no name on the Hub but a folder, with one state: leave it out")
    return Source(name, base, gguf, adapters, None if Path(base).exists() else revision)


def base_name(name: str) -> str:
    """The model that `name` stands on: itself, or the base of the adapter folder (or folders) that it is."""
    return source_of(name).base_name


def absolute_name(name: str) -> str:
    """A name that means the same model from every folder: a path from the root on, a name on the Hub as it is."""
    path = Path(name)
    if path.is_file():
        return str(path.parent.resolve() / path.name)  # a link to a GGUF file ends in .gguf, what it leads to may not
    return str(path.resolve()) if path.exists() else name


def places(name: str) -> list[str]:
    """Everything that a model is made of, the name itself first."""
    source = source_of(name)
    return list(dict.fromkeys([name, *map(str, reversed(source.adapters)), source.base_name]))


def check_adapter(folder: Path) -> Path:
    """The weight file of an adapter folder.

    Raises:
        ModelError: It is not there, or damaged.
    """
    file = folder / ADAPTER_FILE
    if not file.exists():
        raise ModelError(f"{folder}: no {ADAPTER_FILE} in it; weights in other files are not loaded")
    check_adapter_config(folder, header_of(file))
    return file


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


def check_model(name: str, *, trust_remote_code: bool = False, revision: str | None = None) -> Source:
    """Check what can be checked before weights load: the configuration is there, a causal LM, its files safetensors.

    Returns:
        What the model is made of.

    Raises:
        ModelError: It cannot be used.
    """
    source = source_of(name, revision)
    folder, base = Path(source.base), source.base
    mend = "; put the base there, or write where it is now into that file" if source.adapters else ""
    if folder.exists() and not source.gguf and not (folder / "config.json").exists():
        raise ModelError(f"{source.where}: not a model folder, there is no config.json in it{mend}")
    if not folder.exists() and (folder.is_absolute() or base.startswith((".", "~")) or base.count("/") > 1):
        raise ModelError(f"{source.where}: no such folder{mend}")
    if folder.is_dir() and not source.gguf:
        check_folder(folder, weight_headers(folder).values())
    if source.gguf and find_spec("gguf") is None:
        raise ModelError(
            f"{source.where}: GGUF files are read with the package gguf: pip install 'expunge[gguf]', or give the "
            "safetensors folder that it was made from"
        )
    try:
        config = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code, **source.options)
    except Exception as error:  # what damaged files can make of it has no bounds
        if not trust_remote_code and "trust_remote_code" in str(error):
            raise ModelError(
                f"{source.where}: comes with code of its own, which is not run unless you trust its author and give "
                "--trust-remote-code"
            ) from None
        if source.gguf:
            mend = (
                f": where {source.gguf} is of an architecture that transformers cannot read, give the safetensors "
                f"folder that it was made from{mend}"
            )
        raise ModelError(f"{source.where}: cannot read its configuration ({first_line(error)}){mend}") from None
    if type(config) not in AutoModelForCausalLM._model_mapping and not getattr(config, "auto_map", None):
        raise ModelError(f"{source.where}: architecture {config.model_type} is not a causal language model")
    return source


def stored_weights(source: Source) -> list[dict[str, Any]] | None:
    """Headers of the files that hold the base's weights (tensor -> dtype and shape), downloaded where they are not yet.

    None where only the loader knows them: of a GGUF file, and of a name where the Hub has no safetensors or is out of
    reach.

    Raises:
        ModelError: They cannot be downloaded or are damaged, or what lies beside them is refused by `check_folder`.
    """
    if source.gguf:
        return None
    if Path(source.base).is_dir():
        return list(weight_headers(Path(source.base)).values())
    folder = _hub_folder(source, SINGLE) or _hub_folder(source, INDEX)
    if folder is None:
        return None
    if not (folder / SINGLE).exists():
        shards = shard_names(folder)
        try:
            downloaded(source.base, source.revision, shards)
        except Exception as error:  # those of a connection have no kind in common
            raise ModelError(f"{source.where}: its weights cannot be downloaded ({first_line(error)})") from None
        if missing := [name for name in shards if not (folder / name).exists()]:
            mend = f"hf download {source.base}" + (f" --revision {source.revision}" if source.revision else "")
            raise ModelError(f"{source.where}: {missing[0]} is not in the Hub's cache on this machine: {mend}")
    headers = list(weight_headers(folder).values())
    check_folder(folder, headers)
    return headers


def commit_of(source: Source) -> str | None:
    """The commit of a base on the Hub that is loaded; None of a folder."""
    folder = None if Path(source.base).exists() else _hub_folder(source, "config.json")
    return folder.name if folder else None


def _hub_folder(source: Source, name: str) -> Path | None:
    """The folder in the Hub's cache that holds a file of the base; None where there is none of that name."""
    try:
        found = cached_file(source.base, name, revision=source.revision)
    except (OSError, ValueError):  # no such file, or the Hub is out of reach, which loading it says better
        return None
    except Exception as error:  # a connection that breaks
        raise ModelError(f"{source.where}: the Hub cannot be asked for {name} ({first_line(error)})") from None
    return Path(found).parent if found else None


def downloaded(name: str, revision: str | None, patterns: list[str]) -> Path:
    """The folder of the Hub's cache with the files of a name that match, downloaded where they are not there yet.

    Offline it is asked for as such: huggingface_hub 1.33 asks the Hub for the files of a commit otherwise.
    """
    offline = constants.HF_HUB_OFFLINE
    return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=offline))


def first_line(error: BaseException) -> str:
    """The first two lines of a message that say something, as one, or the error's kind."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])[:300] or type(error).__name__


def _adapter_at(place: str, revision: str | None) -> Path | None:
    """The adapter folder that a name means, that of the Hub's cache for a name there; None for anything else."""
    if Path(place).exists():
        return Path(place) if (Path(place) / "adapter_config.json").exists() else None
    if place.count("/") != 1 or place.startswith((".", "~", "/")):
        return None
    try:
        return _downloaded_adapter(place, revision)
    except (OSError, ValueError):  # no such name, or the Hub is out of reach, which loading it says better
        return None
    except Exception as error:  # a connection that breaks
        raise ModelError(f"--model {place}: the Hub cannot be asked for it ({first_line(error)})") from None


@cache
def _downloaded_adapter(name: str, revision: str | None) -> Path | None:
    if find_adapter_config_file(name, revision=revision) is None:
        return None
    return downloaded(name, revision, ADAPTER_PARTS)


def _revision_of(adapter: Path, settings: dict[str, Any]) -> str | None:
    revision = settings.get("revision")
    if not isinstance(revision, str | None):
        kind = type(revision).__name__
        raise ModelError(f"{adapter / 'adapter_config.json'}: its revision is no text but a {kind}: put it in quotes")
    return revision


def _base_of(adapter: Path, settings: dict[str, Any]) -> str:
    base: str | None = settings.get("base_model_name_or_path")  # by `check_adapter`
    if not base:
        raise ModelError(f"--model {adapter}: its adapter_config.json names no base model")
    if Path(base).exists():
        return base
    moved = [BASE] if Path(base).is_absolute() and Path(base).name == BASE else []  # the run was moved
    beside = (adapter / name for name in (base, *moved))
    return next((str(place.resolve()) for place in beside if place.exists()), base)


def _gguf_file(place: str) -> str | None:
    """The GGUF file that a name means: the file itself, or the only one of a folder without other weights."""
    path = Path(place)
    if path.is_file() and path.suffix == ".gguf":
        return path.name
    found = sorted(file.name for file in path.glob("*.gguf")) if path.is_dir() else []
    if not found or any(path.glob("*.safetensors")):
        return None
    if len(found) > 1:
        raise ModelError(f"--model {place}: holds {len(found)} GGUF files: name one, as {path / found[0]}")
    return found[0]
