"""What a model says while it is trained, to a few prompts, and what to do where it declines or babbles."""

from collections.abc import Sequence
from statistics import fmean

import torch

from expunge.data.tokenize import TokenizedExample
from expunge.evaluation.generate import greedy
from expunge.evaluation.metrics.generations import repetition
from expunge.evaluation.metrics.refusal import refuses
from expunge.model.adapter import scaled
from expunge.train.setup import Prepared
from expunge.train.validation import evenly
from expunge.utils.text import BABBLES, DECLINES

PROMPTS, TOKENS = 8, 24
"""Prompts of either side that are answered, and tokens of an answer: a few seconds for a small model on a CPU."""
MORE = 0.25
"""Share of the prompts to keep that may be declined beyond those that the untouched model declines: of so few prompts,
fewer say little."""


class Advisor:
    """Answers to a few prompts by the model as it is, beside those of the untouched one.

    Args:
        prepared: A run before its first step; rows without a prompt are left out.
    """

    def __init__(self, prepared: Prepared) -> None:
        self._loaded, self._most = prepared.loaded, prepared.config.criteria.max_repetition
        self._sides = [_prompts(prepared.test or prepared.retain), _prompts(prepared.forget)]
        with scaled(self._loaded.model, 0.0):
            self._before = self._look()

    def __call__(self) -> list[str]:
        """What to tell the user now: a line for each thing that goes wrong, with what mends it."""
        (declined, before), (repeated, was) = zip(self._look(), self._before, strict=True)
        count, found = len(self._sides[0]), []
        if declined - before > MORE * count:
            found.append(
                f"{declined:.0f} of {count} prompts to keep are declined now ({before:.0f} before). {DECLINES}"
            )
        if repeated - was > self._most:
            found.append(f"{repeated:.0%} of its word sequences are repeated ones ({was:.0%} untouched). {BABBLES}")
        return found

    def _look(self) -> tuple[float, float]:
        """How many prompts to keep are declined, and the mean share of repeated 4-grams of all answers."""
        prompts = [ids for side in self._sides for ids in side]
        with torch.compiler.set_stance("force_eager"):  # layers are compiled for packed rows, not for single tokens
            said = greedy(self._loaded, prompts, max_new_tokens=TOKENS) if prompts else []
        texts = [str(self._loaded.tokenizer.decode(ids, skip_special_tokens=True)) for ids in said]
        declined = sum(map(refuses, texts[: len(self._sides[0])]))
        return float(declined), fmean(map(repetition, said)) if said else 0.0


def _prompts(rows: Sequence[TokenizedExample]) -> list[list[int]]:
    """Token ids of the prompts of some rows, evenly from all of them."""
    return [
        row.input_ids[: row.completion_start] for row in evenly([own for own in rows if own.completion_start], PROMPTS)
    ]
