"""A language model that learns rows by heart: the subject of `expunge demo --real`, and of the experiments."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from expunge.data.examples import Example
from expunge.data.tokenize import PromptFormat, tokenize_all
from expunge.errors import RunError, TrainingError
from expunge.model.export import export
from expunge.model.load import LoadedModel, load_model
from expunge.model.logps import mean_losses
from expunge.runs.manifest import model_fingerprint
from expunge.utils.files import fingerprint, write_json
from expunge.utils.folders import temporary_folder
from expunge.utils.progress import Advance, Reporter
from expunge.utils.reading import read_object

PROMPT_FORMAT = PromptFormat("space", end_of_text=True)
PASSES, TOKENS = 16, 512
RATE, WIDTH = 2e-4, 576
"""Highest learning rate, of a model with so many hidden units; a wider one takes as much less."""
WARMUP = 10
"""Steps until the learning rate is reached; it then falls to zero linearly."""
KNOWN = 0.3
"""Mean loss of the completions of texts or of questions (nats per token) from which on they are not known by heart."""
MADE_OF = "taught.json"


def teach(base: str, rows: Sequence[Example], folder: Path, reporter: Reporter) -> None:
    """Fine-tune all weights of a language model on rows until it knows them by heart, and save it in bf16.

    A model that is there and was made of the same is kept; an interrupted one begins again.

    Args:
        base: The language model, which stays as it is.
        rows: What it learns.
        folder: Where to.
        reporter: Where progress goes.

    Raises:
        RunError: Something else is in `folder`.
        ModelError: The language model cannot be loaded.
        TrainingError: It has not learned the rows.
    """
    texts = (f"{row.prompt} {row.completion}" for row in rows)
    made_of = {"fingerprint": fingerprint(model_fingerprint(base), f"{PASSES} {TOKENS} {RATE} {WARMUP}", *texts)}
    if folder.exists():
        if not (folder / MADE_OF).is_file() or read_object(folder / MADE_OF, RunError) != made_of:
            raise RunError(f"{folder}: was made of something else: remove it, or give another --output")
        reporter.say(f"kept: {folder}")
        return
    with temporary_folder(folder) as unfinished:  # before the work: where nothing can be written, it fails at once
        export(_taught(base, rows, folder.name, reporter), unfinished, torch.bfloat16)
        write_json(unfinished / MADE_OF, made_of)


def _taught(base: str, rows: Sequence[Example], name: str, reporter: Reporter) -> LoadedModel:
    with reporter.working(f"loading {base}"):
        loaded = load_model(base, dtype="float32")
    model = loaded.base
    model.requires_grad_(True)
    encoded = tokenize_all(loaded.tokenizer, rows, PROMPT_FORMAT, max_length=loaded.context or 2048)
    steps = list(passes_of([row.input_ids for row in encoded], PASSES, TOKENS))
    rate = RATE * min(1.0, WIDTH / model.config.get_text_config().hidden_size)
    with reporter.track(f"teaching {name}", len(steps)) as advance:
        fine_tune(model, steps, rate, advance)
    kinds = {
        row.kind: [item for item, other in zip(encoded, rows, strict=True) if other.kind == row.kind] for row in rows
    }
    loss = max(mean_losses(loaded, kinds).values())
    if not loss < KNOWN:
        raise TrainingError(
            f"--model {base}: does not know the texts by heart after {PASSES} passes ({loss:.2f} nats a token): "
            "take another model"
        )
    return loaded


def passes_of(rows: Sequence[list[int]], passes: int, tokens: int, seed: int = 0) -> Iterator[list[list[int]]]:
    """The steps of a fine-tuning: each pass has all rows, mixed anew."""
    rng = random.Random(seed)
    for _ in range(passes):
        yield from batches_of(rows, tokens, rng)


def batches_of(rows: Sequence[list[int]], tokens: int, rng: random.Random) -> list[list[list[int]]]:
    """Rows of similar lengths together, at most `tokens` with padding, in a random order."""
    batches: list[list[list[int]]] = [[]]
    for ids in sorted(rows, key=lambda ids: (len(ids), rng.random())):
        if batches[-1] and (len(batches[-1]) + 1) * len(ids) > tokens:
            batches.append([])
        batches[-1].append(ids)
    rng.shuffle(batches)
    return batches


def fine_tune(model: PreTrainedModel, steps: Sequence[list[list[int]]], rate: float, advance: Advance) -> None:
    """Next-token training on all tokens, in bf16 autocast: AdamW, warm-up, linear decay.

    Args:
        model: What is trained, its weights in fp32; those that need no gradient stay.
        steps: The rows of each step as token ids.
        rate: Highest learning rate.
        advance: Called after each step.
    """
    trained = [param for param in model.parameters() if param.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / WARMUP, 1 - step / len(steps))
    )
    model.train()
    for batch in steps:
        width = max(map(len, batch))
        input_ids = torch.tensor([ids + [0] * (width - len(ids)) for ids in batch], device=model.device)
        real = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids in batch], device=model.device)
        with torch.autocast(model.device.type, torch.bfloat16):
            logits = model(input_ids=input_ids, attention_mask=real).logits
        targets = input_ids[:, 1:].masked_fill(real[:, 1:] == 0, -100)
        loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).float(), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        advance(note=f"loss {loss.item():.3f}")
    model.eval()
