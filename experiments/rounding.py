"""`python -m experiments.rounding`: does what was forgotten come back when the merged model is rounded to 8 or 4 bits?

    python -m experiments.rounding --output FOLDER --subjects demo [--seeds 0 1 2 3 4]

FOLDER is that of `python -m experiments.arms run --arms default`; its runs are merged, the weights of all linear layers
within the blocks rounded, and the official terms measured again. Rounding is simulated: weights become what
bitsandbytes would compute with, 8 bits with one scale a row, 4 bits as NF4 (Dettmers et al. 2023, 2305.14314) with one
a block of 64.
"""

import argparse
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.pytorch_utils import Conv1D

from experiments.scoring import opened, score, spread, subject_arguments, summary
from expunge.api.finished import merge

BLOCK = 64
NF4 = torch.tensor(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
        -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
        0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
    ]
)  # fmt: skip


def int8(weight: Tensor) -> Tensor:
    """Each row to 255 levels up to its largest value."""
    scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127
    return (weight / scale).round() * scale


def nf4(weight: Tensor) -> Tensor:
    """Each block of 64 to the 16 levels of NF4 times its largest value."""
    flat = weight.flatten()
    blocks = torch.nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scale = blocks.abs().amax(1, keepdim=True).clamp(min=1e-12)
    nearest = ((blocks / scale).unsqueeze(-1) - NF4).abs().argmin(-1)
    return (NF4[nearest] * scale).flatten()[: len(flat)].view_as(weight)


ROUNDINGS: dict[str, Callable[[Tensor], Tensor] | None] = {"merged": None, "8 bits": int8, "4 bits": nf4}


@torch.no_grad()
def round_model(folder: Path, output: Path, rounding: Callable[[Tensor], Tensor]) -> None:
    """A copy of a model folder, without its results, with the linear layers within its blocks rounded."""
    shutil.copytree(folder, output, dirs_exist_ok=True, ignore=shutil.ignore_patterns("results_*"))
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    head = model.get_output_embeddings()
    rounded = 0
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            module.weight.copy_(rounding(module.weight))
            rounded += 1
        elif isinstance(module, Conv1D):  # a linear layer that is stored the other way round
            module.weight.copy_(rounding(module.weight.T.contiguous()).T)
            rounded += 1
    if not rounded:
        raise SystemExit(f"{folder}: has no linear layers that are known here")
    model.save_pretrained(output)


def main(argv: list[str] | None = None) -> None:
    """Print a table for each subject."""
    args = _arguments().parse_args(argv)
    for name, subject, folder, data, untouched, _ in opened(args):
        rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in ROUNDINGS}
        for seed in args.seeds:
            run = folder / f"default-{seed}"
            merged = run / "merged"
            if not merged.is_dir():
                merge(str(run), str(merged))
            for kind, rounding in ROUNDINGS.items():
                model = merged
                if rounding is not None:
                    model = run / kind.replace(" ", "-")
                    round_model(merged, model, rounding)
                rows[kind].append(summary(score(subject, model, data, str(model)), untouched))
        print(f"### {name}, seeds {' '.join(map(str, args.seeds))}\n\n| | task | forget | lowest retain | auc |")
        print("|---|---:|---:|---:|---:|")
        for kind, found in rows.items():
            cells = [spread([row[column] for row in found]) for column in ("task", "forget", "lowest retain", "auc")]
            print(f"| {kind} | {' | '.join(cells)} |")


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.rounding", description=__doc__.splitlines()[0])
    parser.add_argument("--output", required=True, help="folder of the runs of experiments.arms")
    subject_arguments(parser)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    return parser


if __name__ == "__main__":
    main()
