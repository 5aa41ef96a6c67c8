"""TOFU: questions about invented authors, real authors and world facts, each with wrong answers beside the right one.

Maini et al. 2024 (2401.06121): model utility is the harmonic mean of nine numbers that must stay, forget quality the
p-value of a test against a model retrained without the forget set.
"""

from collections.abc import Mapping, Sequence

from expunge.config import SPLIT, EvaluateConfig
from expunge.data.tofu import TofuRow, read_tofu
from expunge.evaluation.estimate import Estimate
from expunge.evaluation.measurement import Measurement
from expunge.evaluation.metrics import METRICS
from expunge.evaluation.metrics.aggregate import forget_quality, model_utility
from expunge.evaluation.metrics.registry import default_metrics
from expunge.evaluation.stats import statistic_estimate
from expunge.evaluation.suite import RowSet, Suite
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


def read(config: EvaluateConfig) -> Suite:
    """The four sets of one split."""
    split = config.split or SPLIT["tofu"]
    data = read_tofu(config.data or "", split)
    return Suite(
        tuple(_rows(name, getattr(data, name)) for name in SETS),
        split=split,
        not_measured=("TOFU has no texts that the model has never seen, so no membership attack was run.",),
    )


def aggregate_entries(
    measurement: Measurement, reference: Measurement | None, suite: Suite, mmlu: float | None
) -> dict[str, Estimate]:
    """Model utility, and forget quality where there is a reference."""
    groups = {f"{name}/{metric}": measurement.rows[name, metric].values for name, metric in UTILITY}
    documents = {f"{name}/{metric}": measurement.rows[name, metric].documents for name, metric in UTILITY}
    own = statistic_estimate(groups, _utility, documents)
    found = {"all/model_utility": METRICS["model_utility"].read(own)}
    if reference is not None:
        ours, theirs = (own.rows["forget", "truth_ratio_raw"].values for own in (measurement, reference))
        p = Estimate(
            forget_quality(ours.tolist(), theirs.tolist()), n=len(ours), reason="a p-value, which has no interval"
        )
        found["all/forget_quality"] = METRICS["forget_quality"].read(p)
    return found


def _utility(groups: Mapping[str, Floats]) -> float:
    return model_utility([float(values.mean()) for values in groups.values()])


def _rows(name: str, rows: Sequence[TofuRow]) -> RowSet:
    real = tuple("retain_truth_ratio" if metric == "truth_ratio" else metric for metric in REAL)
    return RowSet(
        name,
        [row.example for row in rows],
        [row.document for row in rows],
        default_metrics(name) if name in ("forget", "retain") else real,
        paraphrased=[row.paraphrased_question for row in rows],
        correct=[row.correct for row in rows],
        wrong=[row.wrong for row in rows],
    )
