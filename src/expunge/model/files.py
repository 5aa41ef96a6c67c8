"""What can be known of a model folder without loading it: that its weights are all there, whole, and no pickles."""

from pathlib import Path
from typing import Any

from expunge.errors import ModelError
from expunge.utils.reading import parse_json, read_object

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
WIDEST_HEADER = 100_000_000
"""Bytes: the bound that the safetensors format sets for a header."""


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
    """The header of a safetensors file that is as long as its header says: name -> dtype and shape.

    Raises:
        ModelError: It cannot be read, is cut off or has something else in front.
    """
    try:
        size = file.stat().st_size
        with open(file, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 2 <= length <= min(WIDEST_HEADER, size - 8):
                raise ValueError("its beginning is not that of a safetensors file")
            header: dict[str, Any] = parse_json(stream.read(length))
        header.pop("__metadata__", None)
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
        if size != end:
            raise ValueError(f"{size:,} bytes where its header says {end:,}")
    except OSError as error:
        raise ModelError(f"{file}: cannot be read ({error.strerror or error})") from None
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
        reason = str(error) if type(error) is ValueError else "its header cannot be read"
        raise ModelError(f"{file}: damaged or cut off ({reason}): download it again") from None
    return header


def _indexed(folder: Path) -> list[Path]:
    """The files that the index of a folder in several parts names."""
    index = read_object(folder / INDEX, ModelError).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(name, str) for name in index.values()):
        raise ModelError(f"{folder / INDEX}: holds no weight_map: it is damaged")
    names = sorted(set(index.values()))
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise ModelError(f"{folder / INDEX}: names {name!r}, which is not a safetensors file of the folder")
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        raise ModelError(
            f"--model {folder}: {len(missing)} of {len(names)} weight files are missing, first {missing[0]}: "
            "download it again"
        )
    return [folder / name for name in names]
