"""Products in low precision: few shapes where they are compiled, wide results where the device gives them.

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


def wide_linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`rows @ weight.T + bias`; on CUDA the fp32 sums of a bfloat16 product as they are, not rounded to bfloat16 first.

    On the CPU there is no such product: the result is in the dtype of the inputs. Rounded logits put a floor of about
    1e-4 nats under a divergence (docs/performance.md).
    """
    if rows.device.type == "cuda" and rows.dtype in (torch.bfloat16, torch.float16):
        logits = torch.mm(rows, weight.T, out_dtype=torch.float32)
        return logits if bias is None else logits + bias
    return torch.nn.functional.linear(rows, weight, bias)
