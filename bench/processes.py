"""One, two and three processes of one run under a real launcher: how far their losses and adapters are apart.

python -m bench.processes

On the CPU with gloo, on a tiny model, with rows of very different lengths, five of them in a step; then the same with
--shard-base on a model whose layers are most of it. Prints the tables of docs/scaling.md; exit code 1 when a difference
is above what rounding explains.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[1]
BOUND = 1e-4
COUNTS = (1, 2, 3)
WIDE: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "head_dim": 64, "initializer_range": 0.08,
}  # fmt: skip
COMMAND = (
    "unlearn", "--forget", "forget.jsonl", "--retain", "retain.jsonl", "--retain-test", "0",
    "--holdout", "holdout.jsonl", "--rows-per-step", "5", "--epochs", "4", "--lora-rank", "4", "--dtype", "float32",
    "--device", "cpu", "--learning-rate", "0.005",
)  # fmt: skip


def make_workspace(folder: Path) -> None:
    """A tiny and a wide model, 23 forget, 37 retain and 7 holdout rows."""
    from tiny import save_tiny

    save_tiny(folder / "tiny", "llama")
    save_tiny(folder / "wide", "llama", **WIDE)
    for name, count in (("forget", 23), ("retain", 37), ("holdout", 7)):
        rows = [
            {
                "input": f"Where does {name} {i} live?" + " Say it." * (i * 3 % 11),
                "output": f"At {i} Larch Lane" + ", by the old mill" * (i * 5 % 6) + ".",
            }
            for i in range(count)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def differences(folder: Path, first: str, second: str) -> tuple[float, float, float]:
    """Largest difference of a step's loss (relative), of a weight, and of a loss before or after (nats)."""
    logs = [
        [json.loads(line)["loss"] for line in (folder / run / "metrics.jsonl").read_text().splitlines()]
        for run in (first, second)
    ]
    losses = max(abs(one - other) / abs(one) for one, other in zip(*logs, strict=True))
    weights = [load_file(folder / run / "adapter/adapter_model.safetensors") for run in (first, second)]
    adapter = max((weights[0][name] - weights[1][name]).abs().max().item() for name in weights[0])
    ends = [
        json.loads((folder / run / "manifest.json").read_text())["loss_nats_per_completion_token"]
        for run in (first, second)
    ]
    nats = max(abs(ends[0][name][when] - ends[1][name][when]) for name in ends[0] for when in ("before", "after"))
    return losses, adapter, nats


def table(folder: Path, model: str, flags: tuple[str, ...]) -> float:
    """Run with every number of processes, several of them with `flags`; print a table, return the worst difference."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    rows, worst = [], 0.0
    for count in COUNTS:
        launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)) if count > 1 else ()
        run, extra = f"{model}{count}", flags if count > 1 else ()
        begun = time.monotonic()
        done = subprocess.run(
            [sys.executable, *launcher, "-m", "expunge", *COMMAND, "--model", model, "--output", run, *extra],
            cwd=folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{count} processes: exit code {done.returncode}\n{done.stderr}")
        seconds = time.monotonic() - begun
        manifest = json.loads((folder / run / "manifest.json").read_text())
        if manifest["hardware"]["processes"] != count:
            raise SystemExit(f"{count} processes were asked for, {manifest['hardware']['processes']} shared the run")
        held = re.search(r"^base: (.+) in each of", done.stderr, re.MULTILINE)
        found = differences(folder, f"{model}1", run)
        worst = max(worst, *found)
        shown = " | ".join(f"{x:.1e}" for x in found)
        rows.append(f"| {count} | {held[1] if held else 'whole'} | {manifest['steps']} | {shown} | {seconds:.0f} s |")
        print(f"{model}, {count}: done", flush=True)
    print(f"\n{model} {' '.join(flags)}\n")
    print("| processes | base in each | steps | loss of a step, relative | a weight | loss before or after | wall |")
    print("|---|---|---|---|---|---|---|")
    print("\n".join(rows), flush=True)
    return worst


def main() -> int:
    """Run all, print the tables."""
    sys.path.insert(0, str(ROOT / "tests"))
    folder = Path(tempfile.mkdtemp(prefix="expunge-processes-"))
    make_workspace(folder)
    worst = max(table(folder, "tiny", ()), table(folder, "wide", ("--shard-base",)))
    return int(worst > BOUND)


if __name__ == "__main__":
    sys.exit(main())
