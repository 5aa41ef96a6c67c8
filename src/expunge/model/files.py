"""What can be known of a model folder without loading it: that its weights are all there, whole, and no pickles."""

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from expunge.errors import ModelError
from expunge.utils.reading import read_object

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def weight_headers(folder: Path) -> dict[Path, dict[str, Any]]:
    """The files that hold the weights of a model folder, each there and whole, with their headers.

    Raises:
        ModelError: There are none in safetensors format, one is missing or damaged, or the index leads elsewhere.
    """
    if (folder / SINGLE).exists():
        files = [folder / SINGLE]
    elif (folder / INDEX).exists():
        files = _indexed(folder)
    else:
        files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
        hint = (
            f"only {pickles[0]}, and pickles are never loaded, since one can run any program: convert it where that "
            "does no harm, with AutoModelForCausalLM.from_pretrained(OLD).save_pretrained(NEW)"
            if pickles
            else "none"
        )
        raise ModelError(f"--model {folder}: no weights in safetensors format ({hint})")
    return {file: header_of(file) for file in files}


def header_of(file: Path) -> dict[str, Any]:
    """The tensors of a whole safetensors file: name -> dtype and shape.

    Raises:
        ModelError: It cannot be read, is cut off, or its header is not that of what it holds.
    """
    try:
        with open(file, "rb"):
            pass  # the system's own reason where it cannot be read
        with safe_open(file, framework="pt") as tensors:
            parts = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118, no mapping
            return {name: {"dtype": part.get_dtype(), "shape": part.get_shape()} for name, part in parts.items()}
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror or error})") from None
    except SafetensorError:
        raise ModelError(f"{file}: damaged or cut off (it is no whole safetensors file): download it again") from None


def shard_names(folder: Path) -> list[str]:
    """The files that the index of a folder in several parts names, whether they are there or not.

    Raises:
        ModelError: It names none, or something else than safetensors files of the folder.
    """
    index = read_object(folder / INDEX, ModelError).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(name, str) for name in index.values()):
        raise ModelError(f"{folder / INDEX}: holds no weight_map: it is damaged")
    names = sorted(set(index.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{folder / INDEX}: names {name!r}, which is not a safetensors file of the folder")
    return names


def _indexed(folder: Path) -> list[Path]:
    names = shard_names(folder)
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise ModelError(
            f"--model {folder}: {len(missing)} of {len(names)} weight files are missing, first {missing[0]}: "
            "download it again"
        )
    return [folder / name for name in names]
