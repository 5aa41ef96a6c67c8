"""MUSE: what a model still says of a corpus, what it knows of it, and whether it gives away having seen it.

Shi et al. 2024 (2407.06460), news or books. Prompts are as published: passages as they stand, questions behind their
few-shot examples, ending in `Answer: `; answers end at a blank line or at the next question. Generations are compared
by ROUGE-L F1 without stemming. The published numbers are means in percent; ours are in [0, 1], PrivLeak in percent.
"""

import math
from dataclasses import replace

from expunge.config import EvaluateConfig
from expunge.data.examples import Example
from expunge.data.muse import MuseData, read_muse
from expunge.data.tokenize import PromptFormat
from expunge.errors import DataError
from expunge.evaluation.estimate import Estimate
from expunge.evaluation.measurement import Measurement
from expunge.evaluation.metrics import METRICS
from expunge.evaluation.metrics.aggregate import privleak
from expunge.evaluation.suite import Documents, RowSet, Suite
from expunge.utils.roc import auc

RAW = ("nll",)
FORCED = ("probability", "perplexity", "exact_memorization", "extraction_strength")
MAX_NEW_TOKENS = {"verbmem": 128, "knowmem": 32}
STOPS = ("\n\n", "\nQuestion", "Question:")
"""Where an answer ends."""
PRIVLEAK_SHARE = 0.4
"""PrivLeak takes the AUC of min-k% at this share of the tokens."""


def read(config: EvaluateConfig) -> Suite:
    """One corpus."""
    return suite_of(read_muse(config.data or "", config.split))


def suite_of(data: MuseData) -> Suite:
    """The corpus as the passes take it."""
    verbatim = (*RAW, "verbatim_memorization", *FORCED, "repetition", "fluency", "leak_at_k")
    return Suite(
        (
            _rows("forget", "verbmem", data.verbmem, verbatim),
            _rows("forget", "knowmem", data.forget_qa, (*RAW, "knowledge_memorization", "leak_at_k")),
            _rows("retain", "knowmem", data.retain_qa, ("knowledge_memorization", *FORCED)),
        ),
        Documents(data.forget, data.holdout, names=("forget", "holdout"), shares=(0.2, PRIVLEAK_SHARE)),
        prompt_format=PromptFormat("none", end_of_text=False),
        alone=True,
        split=data.corpus,
    )


def aggregate_entries(measurement: Measurement, reference: Measurement | None, suite: Suite) -> dict[str, Estimate]:
    """PrivLeak, where there is a reference."""
    key = f"min_k_{round(100 * PRIVLEAK_SHARE)}"
    if reference is None or key not in measurement.attacks:
        return {}
    ours, theirs = (auc(*(side.values for side in result.attacks[key])) for result in (measurement, reference))
    value, reason = math.nan, "one number of two AUCs, which has no rows to resample"
    try:
        value = privleak(ours, theirs)
    except DataError as error:
        reason = str(error)
    sides = [len(side.ids) for side in measurement.attacks[key]]
    found = Estimate(value, n=sum(sides), reason=reason).withheld(*sides)
    return {"membership/privleak": METRICS["privleak"].read(found)}


def _rows(name: str, group: str, examples: list[Example], metrics: tuple[str, ...]) -> RowSet:
    verbatim = group == "verbmem"
    return RowSet(
        name,
        [replace(example, task=group) for example in examples],
        [example.id for example in examples],
        metrics,
        max_new_tokens=MAX_NEW_TOKENS[group],
        cut_reference=verbatim,
        stops=() if verbatim else STOPS,
        by_task=False,
    )
