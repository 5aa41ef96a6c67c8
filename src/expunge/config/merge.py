"""The settings of a merge."""

from dataclasses import dataclass
from typing import Literal

from expunge.config.checks import Plain


@dataclass(kw_only=True)
class MergeConfig(Plain):
    """What adapter and base are written as.

    Attributes:
        run: Run directory with the adapter.
        output: Folder for the merged model.
        forget: The run's texts to forget, where they are not where they were.
        retain: The run's texts to keep, where they are not where they were.
        dtype: `float32`, `bfloat16` or `float16` for all weights; by default each keeps that of the base's files.
        device: `auto`, `cpu`, `cuda` ...
        trust_remote_code: Run code that comes with the model.
        overwrite: Replace `output`.
    """

    run: str
    output: str
    forget: str | None = None
    retain: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    device: str = "auto"
    trust_remote_code: bool = False
    overwrite: bool = False
