"""`python -m bench.gpu`: the same on one CUDA device, random weights in the shapes of OLMo-1B and OLMo-7B.

Rows have the lengths of the official training split (in tokens of the bundled subject's tokenizer; lengths.json stands
in where the data is absent). Weights are stored in bfloat16, as these models are used; plain fp32 loads them as fp32.
`--tiny` runs a tiny model, on the CPU where there is no CUDA device, to see that the script works.
"""

import argparse
import sys
from dataclasses import asdict

import torch

from bench import report
from bench.measure import Spec, in_own_process
from bench.workload import random_model

KINDS = {  # implementation, dtype, nf4
    "olmo-1b": [("plain", "float32", False), ("plain", "bfloat16", False), ("expunge", "bfloat16", False)],
    "olmo-7b": [
        ("plain", "float32", False),
        ("plain", "bfloat16", False),
        ("expunge", "bfloat16", False),
        ("expunge", "bfloat16", True),
    ],
    "olmo-tiny": [("plain", "float32", False), ("plain", "bfloat16", False), ("expunge", "bfloat16", False)],
}
EPOCHS = 20
"""Of the goal: the official training split at 7B in under five minutes."""


def main(argv: list[str] | None = None) -> None:
    """Measure and print the table.

    Raises:
        SystemExit: There is no CUDA device and `--tiny` is not given.
    """
    args = _arguments().parse_args(argv)
    if not (args.tiny or torch.cuda.is_available()):
        raise SystemExit("no CUDA device here; --tiny shows on the CPU that the script works")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    where = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    runs: list[report.Run] = []
    for name in ["olmo-tiny"] if args.tiny else args.models:
        with random_model(name, dtype=torch.bfloat16, device=device) as folder:
            if device == "cuda":
                torch.cuda.empty_cache()  # the measuring processes need the room
            for repeat in range(args.repeats):
                for recipe in args.recipes:
                    for implementation, dtype, in_4bit in KINDS[name]:
                        spec = Spec(
                            "train",
                            implementation,
                            folder,
                            recipe=recipe,
                            dtype=dtype,
                            split="train",
                            seconds=args.seconds,
                            device=device,
                            load_in_4bit=in_4bit,
                        )
                        kind = f"{name} {recipe} {implementation} {'nf4' if in_4bit else dtype}"
                        try:
                            result = in_own_process(spec)
                        except RuntimeError as error:  # one kind that does not fit must not cost the others
                            print(f"{kind}: {error}", file=sys.stderr)
                            continue
                        own = {**asdict(spec), "model": "", "part": "train", "name": name, "repeat": repeat}
                        runs.append({**own, **result})
                        print(f"{kind}: {result['tokens_per_second']:,.0f} tokens/s", file=sys.stderr)
                        report.save(args.output, runs)
    if not runs:
        raise SystemExit("no measurement came through")
    text = f"{where}. {report.conditions(runs)}\n\n{report.training(runs, EPOCHS)}"
    print(text)
    if args.docs:
        report.write_between(report.PAGE, "gpu", text)


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a tiny model in place of the large ones")
    parser.add_argument("--models", nargs="+", choices=["olmo-1b", "olmo-7b"], default=["olmo-1b", "olmo-7b"])
    parser.add_argument("--recipes", nargs="+", choices=["paper", "default"], default=["default"])
    parser.add_argument("--repeats", type=int, default=1, help="processes of each kind (default 1)")
    parser.add_argument("--seconds", type=float, default=20, help="measured training time of each (default 20)")
    parser.add_argument("--output", help="also write every run to this JSON file, after each of them")
    parser.add_argument("--docs", action="store_true", help="also write the table into docs/performance.md")
    return parser


if __name__ == "__main__":
    main()
