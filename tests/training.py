"""A trainer on a tiny model, without files of texts or a run directory: what tests of single steps build on."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from expunge.config import UnlearnConfig
from expunge.data.tokenize import PromptFormat, TokenizedExample
from expunge.losses import make_forget_loss
from expunge.model.load import load_model
from expunge.model.prompt_format import PromptFormatReport
from expunge.train.before import find_reference
from expunge.train.setup import Prepared, SelectionRows
from expunge.train.trainer import Trainer
from expunge.utils.progress import Reporter

Rows = Sequence[TokenizedExample]


def made_up(count: int, seed: int = 0, *, vocabulary: int = 300, longest: int = 20, group: str = "") -> list[Any]:
    """Rows of very different lengths; an id says the seed and the place."""
    chance = random.Random(seed)
    return [
        TokenizedExample(
            f"{seed}-{place}",
            [chance.randrange(3, vocabulary) for _ in range(length)],
            chance.randrange(length),  # 0: no prompt
            group=group,
        )
        for place, length in enumerate(chance.randrange(3, longest) for _ in range(count))
    ]


def prepared(
    model: Path | str,
    *,
    dtype: str = "float32",
    forget: Rows = (),
    retain: Rows = (),
    instead: Rows = (),
    unseen: Rows = (),
    **settings: Any,
) -> Prepared:
    """A run of rows that are tokenized already.

    Args:
        model: Folder of the model.
        dtype: Of the model and the products.
        forget: Rows to forget.
        retain: Rows to keep.
        instead: What to say instead.
        unseen: Rows that give target NLLs.
        settings: Settings of the run; the recipe is `npo` where none is named.
    """
    given = {"recipe": "npo", "learning_rate": 1e-3, "lora_rank": 4, "output": "nowhere", "dtype": dtype}
    given |= {"device": "cpu", **settings}
    config = UnlearnConfig(model=str(model), instead="given" if instead else None, **given)
    loss = make_forget_loss(config.loss, config.loss_args)
    loaded = load_model(str(model), dtype=dtype, device=config.device)
    other = [
        TokenizedExample(
            row.id, [*row.input_ids[: max(1, row.completion_start)], 7, 8, 9], max(1, row.completion_start)
        )
        for row in forget
    ]
    return Prepared(
        config=config,
        loaded=loaded,
        loss=loss,
        forget=list(forget),
        retain=list(retain) if config.needs_retain else [],
        test=[],
        holdout=[],
        instead=list(instead),
        pairs=other if "pairs" in loss.needs else [],
        selection=SelectionRows(list(forget), list(unseen), [], list(unseen), [], frozenset()) if unseen else None,
        reported=[],
        prompt_format=PromptFormatReport(PromptFormat("space", True), {}, None, 1.0, 1),
        texts={},
        model_files={},
        warnings=[],
    )


class Told(Reporter):
    """Keeps its lines, and those of them that are warnings."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []
        self.warned: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)

    def warn(self, line: str) -> None:
        self.lines.append(line)
        self.warned.append(line)


def moved(trainer: Trainer, seed: int = 1, size: float = 0.05) -> Trainer:
    """The trainer with an adapter that does something: where B is 0, half of the gradient is 0 too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in trainer.parameters:
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(noise.to(parameter.device), alpha=size)
    return trainer


def ready(run: Prepared, *, replay: Rows = ()) -> Trainer:
    """A trainer that can take its first step."""
    trainer = Trainer(run)
    trainer.rows.set_replay(list(replay))
    find_reference(trainer, Reporter(quiet=True))
    return moved(trainer)


def gradients(trainer: Trainer) -> list[torch.Tensor]:
    """What the last step has left, before it was clipped if it was not clipped."""
    return [torch.zeros_like(p) if p.grad is None else p.grad.detach().clone() for p in trainer.parameters]
