"""What a model says while it is trained, to a few prompts, and what to do where it declines or babbles."""

import time
from collections.abc import Sequence
from statistics import fmean

from peft.helpers import rescale_adapter_scale

from expunge.data.tokenize import TokenizedExample, evenly, leading_ids
from expunge.evaluation.generate import greedy
from expunge.evaluation.metrics.generations import repetition
from expunge.evaluation.metrics.refusal import refuses
from expunge.train.setup import Prepared
from expunge.utils.distributed import current
from expunge.utils.text import BABBLES, DECLINES

KEPT, FORGOTTEN, TOKENS = 8, 4, 16
"""Prompts to keep and prompts to forget that are answered, and tokens of an answer: enough to see how it begins."""
LONG = 32
"""Tokens of a text without a prompt that is continued from its middle; of a shorter one half says too little."""
SHARE = 0.1
"""Of the time since the last time that it was asked, what asking again may take."""
MORE = 0.25
"""Share of the prompts to keep that may be declined beyond those that the untouched model declines: of so few prompts,
fewer say little."""


class Advisor:
    """Answers to a few prompts by the model as it is, beside those of the untouched one.

    Several processes answer a part of the prompts each; all of them must call it at the same steps.

    Args:
        prepared: A run before its first step; short rows without a prompt are left out.
    """

    def __init__(self, prepared: Prepared) -> None:
        self._loaded, self._most = prepared.loaded, prepared.config.criteria.max_repetition
        begun = len(leading_ids(self._loaded.tokenizer))
        self._kept = _prompts(prepared.test or prepared.retain, KEPT, begun)
        self._prompts = self._kept + _prompts(prepared.forget, FORGOTTEN, begun)
        self._told: set[str] = set()
        with rescale_adapter_scale(self._loaded.model, 0.0):
            self._before = self._look()

    def __call__(self) -> list[str]:
        """What goes wrong now and did not the last time, a line each with what mends it; nothing if it is too soon."""
        if not current().any(time.monotonic() - self._ended >= self._took / SHARE):
            return []
        (declined, before), (repeated, was) = zip(self._look(), self._before, strict=True)
        count, found = len(self._kept), dict[str, str]()
        if declined - before > MORE * count:
            found[DECLINES] = f"{declined:.0f} of {count} prompts to keep are declined now ({before:.0f} before)."
        if repeated - was > self._most:
            found[BABBLES] = f"{repeated:.0%} of its word sequences are repeated ones ({was:.0%} untouched)."
        new = [f"{what} {mend}" for mend, what in found.items() if mend not in self._told]
        self._told = set(found)
        return new

    def _look(self) -> tuple[float, float]:
        """How many prompts to keep are declined, and the mean share of repeated 4-grams of all answers."""
        begun = time.monotonic()
        said = current().share(self._prompts, lambda prompts: greedy(self._loaded, prompts, max_new_tokens=TOKENS))
        self._ended = time.monotonic()
        self._took = self._ended - begun
        texts = [str(self._loaded.tokenizer.decode(ids, skip_special_tokens=True)) for ids in said]
        declined = sum(map(refuses, texts[: len(self._kept)]))
        return float(declined), fmean(map(repetition, said)) if said else 0.0


def _prompts(rows: Sequence[TokenizedExample], most: int, begun: int) -> list[list[int]]:
    """Token ids of the prompts of some rows, or of their first halves; `begun` tokens stand before every text."""

    def end(row: TokenizedExample) -> int:
        return row.completion_start if row.completion_start > begun else len(row) // 2 * (len(row) >= LONG)

    return [row.input_ids[: end(row)] for row in evenly([row for row in rows if end(row)], most)]
