"""What the Hub knows a run's base as: its id there, and what its own card says of licence and language."""

import re
from pathlib import Path
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from expunge.model.source import base_name
from expunge.runs.card import taken
from expunge.runs.reads import model_folders
from expunge.utils.reading import card_metadata

CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/")
"""A folder of the Hub's cache."""


def hub_id(name: str) -> str | None:
    """The id on the Hub of a model, or of what an adapter stands on; None of a folder outside of the Hub's cache."""
    place = Path(name)
    if place.exists():
        cached = CACHED.search(f"{place.absolute()}/")
        return f"{cached[1]}/{cached[2]}" if cached else None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def about_base(model: str) -> dict[str, Any]:
    """`id`, `license`, `language` of the base of a model, as far as they are known without the network."""
    base = base_name(model)
    found: dict[str, Any] = {"id": hub_id(base)}
    for place in model_folders(base)[:1]:
        folder = place.parent if place.is_file() else place  # a GGUF file's card lies beside it
        found |= taken(card_metadata(folder / "README.md"))
    return found
