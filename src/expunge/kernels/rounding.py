"""Few shapes for compiled products.

On the CPU oneDNN compiles a bfloat16 product anew for every number of rows, at several milliseconds a shape, which is
more than most of the products take. Row counts are therefore rounded up there; what stands in the added rows is never
looked at.
"""

import torch
from torch import Tensor

COMPILED_ROWS = 32
"""Multiple of rows that a compiled product gets."""


def row_multiple(dtype: torch.dtype, device: torch.device) -> int:
    """What row counts are rounded up to: `COMPILED_ROWS` for bfloat16 on the CPU, else 1."""
    return COMPILED_ROWS if dtype == torch.bfloat16 and device.type == "cpu" else 1


def missing_rows(count: int, multiple: int) -> int:
    """How many rows `count` lacks to the next multiple."""
    return -count % multiple


def round_rows(rows: Tensor) -> Tensor:
    """`rows` `(count, width)` with as many rows of zeros behind them as their product should have."""
    missing = missing_rows(rows.shape[0], row_multiple(rows.dtype, rows.device))
    return torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows
