"""`python -m bench.attention`: attention of a step's rows on the CPU, by plain products and by PyTorch's `sdpa`.

Forward and backward, bfloat16, in turns, medians in ms. `expunge.model.packing` takes plain products for rows of up to
`PLAIN_LENGTH` tokens.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from expunge.model.packing import PLAIN_LENGTH, attend_plainly

SHAPES = [(8, 4, 96, 56), (16, 4, 64, 56), (8, 9, 128, 64), (4, 9, 256, 64), (4, 16, 64, 128), (1, 16, 256, 128)]
SHAPES += [(2, 9, 512, 64), (1, 9, 1024, 64)]
"""Rows, heads, tokens, width of a head."""
REPEATS, WARMUP = 21, 3


def by_sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention as the library does it."""
    return scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)


def by_plain_products(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention as packed rows are given it here."""
    return attend_plainly(query, key, value, None)


def main(argv: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.attention", description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=REPEATS)
    repeats = parser.parse_args(argv).repeats
    print(f"{torch.get_num_threads()} threads; plain products up to {PLAIN_LENGTH} tokens")
    print("| rows x heads x tokens x width | sdpa | plain | sdpa / plain |")
    print("|---|---:|---:|---:|")
    for shape in SHAPES:
        states = [torch.randn(shape, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]
        taken: dict[Callable[..., Tensor], list[float]] = {by_sdpa: [], by_plain_products: []}
        for _ in range(WARMUP + repeats):
            for way, own in taken.items():
                begun = time.perf_counter()
                found = way(*states)
                found.backward(torch.ones_like(found))
                own.append(1000 * (time.perf_counter() - begun))
        sdpa, plain = (statistics.median(own[WARMUP:]) for own in taken.values())
        print(f"| {' x '.join(map(str, shape))} | {sdpa:.1f} | {plain:.1f} | {sdpa / plain:.1f} |", flush=True)


if __name__ == "__main__":
    main()
