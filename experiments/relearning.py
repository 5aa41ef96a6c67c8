"""What it takes to bring back what was forgotten: fine-tuning on a tenth of it, until half of the rest is back."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch

from expunge.data.examples import Example
from expunge.data.tokenize import TokenizedExample, tokenize_all
from expunge.kernels import token_logps
from expunge.model.load import LoadedModel, load_model
from expunge.model.logps import Batch, final_states, lay_out, sequence_logps, target_positions
from expunge.model.prompt_format import measure_prompt_format
from expunge.train.validation import probabilities

TENTHS = 10
RATE = 3e-4
"""Learning rate of Adam, on all weights but the head's."""
MOST = 100
"""Steps after which an attack gives up."""


@dataclass(frozen=True)
class Attack:
    """Texts of an attack.

    Attributes:
        shown: A tenth of the forget set, rows that stand together in the file, which is trained on, all in each step.
        rest: The other rows, on which it is seen what comes back.
        untouched: What the untouched model knows of `rest`.
    """

    shown: list[TokenizedExample]
    rest: list[TokenizedExample]
    untouched: float


def known(loaded: LoadedModel, rows: Sequence[TokenizedExample]) -> float:
    """Mean over rows of the length-normalised probability of their completions."""
    return fmean(probabilities(rows, sequence_logps(loaded, [row.input_ids for row in rows])))


def prepare_attack(model: Path, forget: Sequence[Example]) -> Attack:
    """The texts of the attack on what `model` knows, with the first tenth of the forget set."""
    loaded = load_model(str(model), dtype="float32", device="cpu")
    context = min(2048, getattr(loaded.base.config, "max_position_embeddings", 2048))
    prompt_format = measure_prompt_format(
        loaded, forget, style="auto", end_of_text="auto", max_length=context, seed=0
    ).chosen
    rows = tokenize_all(loaded.tokenizer, forget, prompt_format, max_length=context, truncate_completions=True)
    shown = len(rows) // TENTHS
    return Attack(rows[:shown], rows[shown:], known(loaded, rows[shown:]))


def steps_to_relearn(model: Path, attack: Attack) -> int:
    """Steps after which `rest` is half as far from its level at the start as the untouched model is; at most `MOST`."""
    loaded = load_model(str(model), dtype="float32", device="cpu")
    start = known(loaded, attack.rest)
    half = start + (attack.untouched - start) / 2
    parameters = [parameter.requires_grad_() for parameter in loaded.base.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=RATE)
    batch = lay_out(loaded, [row.input_ids for row in attack.shown])
    for step in range(MOST):
        if known(loaded, attack.rest) >= half:
            return step
        optimizer.zero_grad()
        _loss(loaded, batch, attack.shown).backward()
        optimizer.step()
    return MOST


def _loss(loaded: LoadedModel, batch: Batch, rows: Sequence[TokenizedExample]) -> torch.Tensor:
    """Mean loss of all tokens, nats."""
    positions = target_positions(batch, rows, "all")
    return -token_logps(final_states(loaded, batch)[positions - 1], loaded.head, batch.flat_ids[positions]).mean()
