"""One measurement in its own process: `python -m bench.measure '{"task": "train", ...}'` prints one JSON line."""

import hashlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import torch

from bench.machine import Memory, clock, matrix_rate, matrix_sizes, processor
from bench.plain import ROWS_PER_BATCH, Plain, load_plain
from bench.workload import rows_for
from expunge.config import UnlearnConfig
from expunge.data.tokenize import TokenizedExample
from expunge.evaluation.generate import greedy, stop_ids
from expunge.losses import make_forget_loss
from expunge.model.load import LoadedModel, load_model
from expunge.train.before import ask_untouched
from expunge.train.setup import Prepared, SelectionRows
from expunge.train.trainer import Trainer
from expunge.utils.progress import Reporter

ROOT = Path(__file__).resolve().parents[1]
WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Spec:
    """What to measure.

    Attributes:
        task: `train` or `score`.
        implementation: `expunge` or `plain`.
        model: Model folder.
        recipe: Terms, spans and adapter, for training.
        dtype: `float32` or `bfloat16`.
        split: Official split whose rows or lengths are used.
        copies: How often the rows are repeated.
        seconds: Time of the measured steps, the last one whole.
        device: `cpu` or `cuda`.
        rows: Rows to generate for, evenly over both sides; 0 is all.
        max_new_tokens: Bound on each generation.
    """

    task: str
    implementation: str
    model: str
    recipe: str = "npo"
    dtype: str = "float32"
    split: str = "validation"
    copies: int = 1
    seconds: float = 30.0
    device: str = "cpu"
    rows: int = 0
    max_new_tokens: int = 256


def in_own_process(spec: Spec) -> dict[str, Any]:
    """Measure in a fresh process.

    Raises:
        RuntimeError: It failed; the message ends with the end of its error output.
    """
    command = [sys.executable, "-m", "bench.measure", json.dumps(asdict(spec))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(spec: Spec) -> dict[str, Any]:
    """Measure in this process."""
    measured = (train if spec.task == "train" else score)(spec)
    return {**measured, "machine": processor(), "threads": torch.get_num_threads(), "torch": torch.__version__}


def prepared_for(
    config: UnlearnConfig,
    loaded: LoadedModel,
    sides: dict[str, list[TokenizedExample]],
    *,
    unseen: Sequence[TokenizedExample] = (),
) -> Prepared:
    """A run of rows that are tokens already; `unseen` rows give target NLLs."""
    return Prepared(
        config=config,
        loaded=loaded,
        loss=make_forget_loss(config.loss, config.loss_args),
        forget=sides["forget"],
        retain=sides["retain"],
        test=[],
        holdout=[],
        instead=[],
        pairs=[],
        selection=SelectionRows(sides["forget"], list(unseen), [], list(unseen), [], frozenset()) if unseen else None,
        reported=[],
        prompt_format=None,  # type: ignore[arg-type]
        texts={},
        model_files={},
        warnings=[],
    )


class _Ours:
    """Expunge's trainer, step by step."""

    def __init__(self, config: UnlearnConfig, loaded: LoadedModel, sides: dict[str, list[TokenizedExample]]) -> None:
        self.trainer = Trainer(prepared_for(config, loaded, sides))
        self.steps_per_epoch = self.trainer.rows.plan.steps_per_epoch
        ask_untouched(self.trainer, Reporter(quiet=True))

    def steps(self) -> Iterator[Any]:
        return self.trainer.rows.plan.steps()

    def texts(self, step: Any) -> tuple[list[TokenizedExample], list[TokenizedExample]]:
        forget, retain = (self.trainer.rows.sides[name].rows for name in ("forget", "retain"))
        return [forget[i] for i in step.forget], [retain[i] for i in step.retain]

    def train(self, step: Any) -> None:
        self.trainer.train_step(step)


class _Plain:
    """The plain implementation, step by step."""

    def __init__(self, config: UnlearnConfig, loaded: LoadedModel, sides: dict[str, list[TokenizedExample]]) -> None:
        self.plain, self.epochs = Plain(loaded, sides["forget"], sides["retain"], config), config.epochs or 1
        self.steps_per_epoch = -(-len(self.plain.rows) // ROWS_PER_BATCH)

    def steps(self) -> Iterator[Any]:
        return self.plain.batches(self.epochs)

    def texts(self, step: Any) -> tuple[list[TokenizedExample], list[TokenizedExample]]:
        return [row for row, is_forget in step if is_forget], [row for row, is_forget in step if not is_forget]

    def train(self, step: Any) -> None:
        self.plain.train_step(step)


def train(spec: Spec) -> dict[str, Any]:
    """Time training steps; see docs/performance.md for every number."""
    loaded = _load(spec)
    sides = rows_for(loaded, spec.split, copies=spec.copies)
    # A constant, harmless learning rate: random models must stay finite, and the speed does not depend on it.
    settings: dict[str, Any] = {"dtype": spec.dtype, "learning_rate": 1e-5, "schedule": "constant", "warmup": 0.0}
    config = UnlearnConfig(recipe=spec.recipe, model=spec.model, device=spec.device, **settings)
    config = replace(config, lora_alpha=float(config.lora_rank), epochs=1000)
    for parameter in loaded.model.parameters():  # weights mapped from the file: now resident
        parameter.detach().sum().item()
    linear, head = matrix_sizes(loaded)
    rates = [matrix_rate(linear + head, loaded.dtype, loaded.device)]

    memory = Memory(loaded.device)
    begun = clock(loaded.device)
    run = (_Ours if spec.implementation == "expunge" else _Plain)(config, loaded, sides)
    set_up_seconds = clock(loaded.device) - begun
    all_rows = [row for rows in sides.values() for row in rows]
    epoch_steps = list(islice(run.steps(), run.steps_per_epoch))
    for step in sorted(epoch_steps, key=lambda step: -_area(run.texts(step)))[:WARM_UP_STEPS]:
        run.train(step)
    tokens = positions = steps = 0
    begun = clock(loaded.device)
    for step in run.steps():
        run.train(step)
        forget, retain = run.texts(step)
        steps += 1
        tokens += sum(map(len, forget + retain))
        positions += sum(len(row.targets(config.forget_span)) for row in forget)
        positions += sum(len(row.targets(config.kl_span)) for row in retain)
        seconds = clock(loaded.device) - begun
        if seconds >= spec.seconds:
            break
    peak = memory.peak()
    rates.append(matrix_rate(linear + head, loaded.dtype, loaded.device))

    floor_flops = 4 * (tokens * _numel(linear) + positions * _numel(head))
    rate = statistics.mean(rates)
    return {
        "tokens_per_second": tokens / seconds,
        "seconds_per_epoch": sum(map(len, all_rows)) / (tokens / seconds),
        "set_up_seconds": set_up_seconds,
        "peak_above_weights": peak - memory.start,
        "peak": peak,
        "memory_method": memory.method,
        "matrix_rate": rate,
        "floor_share": floor_flops / rate / seconds,
        "steps": steps,
        "tokens": tokens,
        "seconds": seconds,
    }


def score(spec: Spec) -> dict[str, Any]:
    """Time greedy generation; the digest says whether two ways give the same tokens."""
    loaded = _load(spec)
    sides = rows_for(loaded, spec.split)
    rows = [row for row in sides["forget"] + sides["retain"] if row.completion_start]
    chosen = rows[:: max(1, len(rows) // spec.rows)][: spec.rows] if spec.rows else rows
    prompts = [row.input_ids[: row.completion_start] for row in chosen]
    drafts = [row.input_ids[row.completion_start :] for row in chosen]
    stops = sorted(stop_ids(loaded))
    begun = clock(loaded.device)
    if spec.implementation == "expunge":
        generated = greedy(loaded, prompts, drafts=drafts, max_new_tokens=spec.max_new_tokens)
    else:
        generated = []
        generate = cast("Callable[..., torch.Tensor]", loaded.base.generate)
        for prompt in prompts:
            ids = torch.tensor([prompt], device=loaded.device)
            options = {"max_new_tokens": spec.max_new_tokens, "do_sample": False, "eos_token_id": stops}
            with loaded.autocast():
                output = generate(ids, attention_mask=torch.ones_like(ids), pad_token_id=stops[0], **options)
            generated.append(output[0, len(prompt) :].tolist())
    seconds = clock(loaded.device) - begun
    return {
        "seconds": seconds,
        "rows": len(chosen),
        "new_tokens": sum(map(len, generated)),
        "draft_right": sum(ids == draft for ids, draft in zip(generated, drafts, strict=True)),
        "digests": [hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16] for ids in generated],
    }


def _load(spec: Spec) -> LoadedModel:
    if spec.implementation == "plain":
        return load_plain(spec.model, dtype=spec.dtype, device=spec.device)
    return load_model(spec.model, dtype=spec.dtype, device=spec.device)


def _area(texts: tuple[list[TokenizedExample], list[TokenizedExample]]) -> int:
    lengths = [len(row) for side in texts for row in side]
    return len(lengths) * max(lengths)


def _numel(sizes: list[tuple[int, int]]) -> int:
    return sum(outputs * inputs for outputs, inputs in sizes)


if __name__ == "__main__":
    print(json.dumps(measure(Spec(**json.loads(sys.argv[1])))))
