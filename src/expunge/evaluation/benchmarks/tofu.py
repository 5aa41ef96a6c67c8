"""TOFU: questions about invented authors, real authors and world facts, each with wrong answers beside the right one.

Maini et al. 2024 (2401.06121): model utility is the harmonic mean of nine numbers that must stay, forget quality the
p-value of a test against a model retrained without the forget set.
"""

from collections.abc import Mapping, Sequence

from expunge.config import SPLIT, EvaluateConfig
from expunge.data.tofu import TofuData, TofuRow, author_of, holdout_of, read_tofu
from expunge.evaluation.estimate import Estimate
from expunge.evaluation.measurement import Measurement
from expunge.evaluation.metrics import METRICS
from expunge.evaluation.metrics.aggregate import forget_quality, model_utility
from expunge.evaluation.metrics.registry import HOLDOUT, default_metrics
from expunge.evaluation.stats import statistic_estimate
from expunge.evaluation.suite import Documents, RowSet, Suite
from expunge.utils.roc import Floats

REAL = ("probability", "normalized_probability", "truth_ratio", "rouge_l_recall")
SETS = ("forget", "retain", "real_authors", "world_facts")
UTILITY = [
    ("retain", "probability"),
    ("retain", "rouge_l_recall"),
    ("retain", "truth_ratio"),
    *((name, metric) for name in ("real_authors", "world_facts") for metric in REAL[1:]),
]
"""The nine parts of model utility."""
MAX_NEW_TOKENS = 200
"""Longest answer, as open-unlearning generates; TOFU's own code counts the prompt, too."""
FIRST = 300
"""TOFU's own code takes so many rows of each set."""


def read(config: EvaluateConfig) -> Suite:
    """The four sets of one split."""
    split = config.split or SPLIT["tofu"]
    data = read_tofu(config.data or "", split)
    most = MAX_NEW_TOKENS if config.max_new_tokens > MAX_NEW_TOKENS else None  # the run's own
    unseen = holdout_of(split)
    lacks = f"The folder has no {unseen}.json (texts that the model has never seen): no membership attack was run."
    return Suite(
        tuple(_rows(name, getattr(data, name), most) for name in SETS),
        _documents(data, unseen),
        split=split,
        not_measured=() if data.holdout else (lacks,),
    )


def aggregate_entries(measurement: Measurement, reference: Measurement | None, suite: Suite) -> dict[str, Estimate]:
    """Model utility, and forget quality where there is a reference."""
    groups = {f"{name}/{metric}": measurement.rows[name, metric].values for name, metric in UTILITY}
    documents = {f"{name}/{metric}": measurement.rows[name, metric].documents for name, metric in UTILITY}
    estimate = statistic_estimate(groups, _utility, documents)
    found = {"all/model_utility": METRICS["model_utility"].read(estimate)}
    if reference is not None:
        ours, theirs = (result.rows["forget", "truth_ratio_raw"].values for result in (measurement, reference))
        for name, rows in (("forget_quality", len(ours)), (f"forget_quality_{FIRST}", FIRST)):
            if rows <= len(ours):
                p = forget_quality(ours[:rows].tolist(), theirs[:rows].tolist())
                estimate = Estimate(p, n=rows, reason="a p-value, which has no interval")
                found[f"all/{name}"] = METRICS["forget_quality"].read(estimate)
    return found


def _utility(groups: Mapping[str, Floats]) -> float:
    return model_utility([float(values.mean()) for values in groups.values()])


def _documents(data: TofuData, unseen: str) -> Documents | None:
    """The questions with their answers, forgotten and unseen."""
    if not data.holdout:
        return None
    labels = [row.document for row in data.forget], [author_of(unseen, at) for at in range(len(data.holdout))]
    members = [row.example for row in data.forget]
    return Documents(members, data.holdout, names=("forget", HOLDOUT), even=True, labels=labels)


def _rows(name: str, rows: Sequence[TofuRow], max_new_tokens: int | None) -> RowSet:
    real = tuple("retain_truth_ratio" if metric == "truth_ratio" else metric for metric in REAL)
    return RowSet(
        name,
        [row.example for row in rows],
        [row.document for row in rows],
        default_metrics(name) if name in ("forget", "retain") else real,
        paraphrased=[row.paraphrased_question for row in rows],
        correct=[row.correct for row in rows],
        wrong=[row.wrong for row in rows],
        max_new_tokens=max_new_tokens,
    )
