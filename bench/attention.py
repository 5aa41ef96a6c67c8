"""`python -m bench.attention`: rows of one length on the CPU, by plain products and by PyTorch's flash attention.

Both passes (forward, and backward for queries, keys and values), in turns, in milliseconds: medians, and what is left
of the time. 2,048 tokens, 9 heads of 64; the error is that of the gradients against fp64, as a share of their size.
`--docs` writes the table into docs/performance.md.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from bench.report import PAGE, show
from expunge.model import row_attention
from expunge.model.row_attention import attend_by_row

LENGTHS = (32, 64, 128, 256, 512, 1024)
TOKENS, HEADS, WIDTH = 2048, 9, 64


class _Layer(torch.nn.Module):
    num_key_value_groups = 1


def measure(length: int, repeats: int) -> tuple[list[float], list[float]]:
    """Milliseconds, and the error of the gradients, by plain products and by flash attention."""
    lengths = (length,) * (TOKENS // length)
    chance = torch.Generator().manual_seed(0)
    exact = [torch.randn(1, sum(lengths), HEADS, WIDTH, generator=chance).transpose(1, 2) * 1.5 for _ in range(3)]
    states = [part.bfloat16().requires_grad_() for part in exact]
    towards = torch.randn(1, sum(lengths), HEADS, WIDTH, generator=chance).bfloat16()

    def gradients(of: list[Tensor], shortest: int) -> tuple[Tensor, ...]:
        row_attention.SHORT = shortest
        query, key, value = of
        output, _ = attend_by_row(_Layer(), query, key, value, None, row_lengths=lengths)
        return torch.autograd.grad(output, of, towards.to(output.dtype))

    ways: tuple[Callable[[], tuple[Tensor, ...]], ...] = (
        lambda: gradients(states, length),
        lambda: gradients(states, 0),
    )
    times: tuple[list[float], list[float]] = ([], [])
    for turn in range(repeats + 2):
        for way, taken in zip(ways, times, strict=True):
            clock = time.perf_counter()
            way()
            if turn > 1:
                taken.append(1e3 * (time.perf_counter() - clock))
    right = torch.cat(
        [part.flatten() for part in gradients([part.detach().double().requires_grad_() for part in states], 0)]
    )
    found = (torch.cat([part.flatten() for part in way()]).double() for way in ways)
    return [statistics.median(taken) for taken in times], [
        float((grads - right).norm() / right.norm()) for grads in found
    ]


def table(repeats: int) -> str:
    """The table in Markdown."""
    lines = [
        "| tokens of a row | plain products | flash attention | plain / flash | error of the gradients: plain | flash |"
    ]
    lines.append("|---:|---:|---:|---:|---:|---:|")
    measure(LENGTHS[0], repeats)  # the first products of a process take longer
    for length in LENGTHS:
        (plain, flash), errors = measure(length, repeats)
        apart = " | ".join(f"{error:.4f}" for error in errors)
        lines.append(f"| {length} | {plain:.1f} ms | {flash:.1f} ms | {plain / flash:.2f} | {apart} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.attention", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20, help="turns of each (default 20)")
    parser.add_argument("--docs", action="store_true", help="also write the table into docs/performance.md")
    args = parser.parse_args()
    show(table(args.repeats), PAGE, "row-attention", docs=args.docs)


if __name__ == "__main__":
    main()
