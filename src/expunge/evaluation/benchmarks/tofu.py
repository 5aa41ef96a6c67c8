"""TOFU: questions about invented authors, real authors and world facts, each with wrong answers beside the right one.

Maini et al. 2024 (2401.06121): model utility is the harmonic mean of nine numbers that must stay, forget quality the
p-value of a test against a model retrained without the forget set.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from expunge.config import EvaluateConfig
from expunge.data.tofu import TofuRow, read_tofu
from expunge.evaluation.benchmarks.entries import Entry, entry, point
from expunge.evaluation.benchmarks.measurement import Measurement
from expunge.evaluation.benchmarks.suite import FORCED, SAID, RowSet, Suite
from expunge.evaluation.metrics import METRICS, aggregate
from expunge.evaluation.stats import statistic_estimate

INVENTED = (*FORCED, "truth_ratio", "truth_probability", *SAID)
REAL = ("probability", "normalized_probability", "truth_ratio", "rouge_l_recall")
METRICS_OF = {
    "forget": (*INVENTED, "fluency"),
    "retain": INVENTED,
    "real_authors": REAL,
    "world_facts": REAL,
}
UTILITY = [
    ("retain", "probability"),
    ("retain", "rouge_l_recall"),
    ("retain", "truth_ratio"),
    *((name, metric) for name in ("real_authors", "world_facts") for metric in REAL[1:]),
]
"""The nine parts of model utility."""


def read(config: EvaluateConfig) -> Suite:
    """The four sets of one split."""
    split = config.split or "forget10"
    data = read_tofu(config.data or "", split)
    return Suite(
        tuple(_rows(name, getattr(data, name)) for name in METRICS_OF),
        split=split,
        not_measured=("TOFU has no texts that the model has never seen, so no membership attack was run.",),
    )


def aggregate_entries(measurement: Measurement, reference: Measurement | None) -> dict[str, Entry]:
    """Model utility, and forget quality where there is a reference."""
    groups = {f"{name}/{metric}": measurement.rows[name, metric].values for name, metric in UTILITY}
    documents = {f"{name}/{metric}": measurement.rows[name, metric].documents for name, metric in UTILITY}
    utility = METRICS["model_utility"]
    found = {
        "all/model_utility": entry(
            statistic_estimate(groups, _utility, documents), utility.direction, "official", utility.source
        )
    }
    if reference is not None:
        ours, theirs = (own.rows["forget", "truth_ratio_raw"].values for own in (measurement, reference))
        quality = METRICS["forget_quality"]
        p = aggregate.forget_quality(ours, theirs)
        found["all/forget_quality"] = point(p, len(ours), quality.direction, "official", quality.source)
    return found


def _utility(groups: Mapping[str, np.ndarray]) -> float:
    return aggregate.model_utility([float(values.mean()) for values in groups.values()])


def _rows(name: str, rows: Sequence[TofuRow]) -> RowSet:
    return RowSet(
        name,
        [row.example for row in rows],
        [row.document for row in rows],
        METRICS_OF[name],
        paraphrased=[row.paraphrased_question for row in rows],
        correct=[row.correct for row in rows],
        wrong=[row.wrong for row in rows],
    )
