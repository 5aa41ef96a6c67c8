"""By what the arms of `experiments.arms` are compared. Written before the first run, and not changed after it.

The arm with the smallest mean rank wins. On each subject and seed the arms that ran there are ranked by each column
(1 is best, ties share their mean rank); a group's rank is the mean over its columns, an arm's rank on the subject the
mean over groups and seeds, and its verdict the mean over subjects. Only arms that ran on the same subjects and seeds
are compared. The subject of the learning-rate sweep has no say.

Every number is of the unlearned model on rows that its run selected nothing on. `retrained` is the mean of the models
that never saw the forget set, `before` the subject.

| group | columns | best |
|---|---|---|
| task aggregate | harmonic mean of the twelve official terms | highest |
| membership | distance of the AUC from the retrained model's: by loss, by loss over zlib, by min-k, by min-k++ | 0 |
| drift | relative change of the mean loss of unseen documents from before | 0 |
| general knowledge | relative change from before of the loss of the right answers to TOFU's world facts and real authors | 0 |
| exact match | share of the forget questions that are still answered to the letter | 0 |
| what is said instead | repetition and perplexity under `before` of what follows forget prompts: distance from the retrained model's | 0 |
| steps | optimizer steps | fewest |

General knowledge is measured on subjects that have some; a group that was not measured on a subject is left out there.
"""

import statistics
from collections.abc import Mapping, Sequence

GROUPS: dict[str, tuple[str, ...]] = {
    "task aggregate": ("task_aggregate",),
    "membership": ("auc_loss", "auc_zlib", "auc_min_k", "auc_min_k_plus_plus"),
    "drift": ("drift",),
    "general knowledge": ("facts",),
    "exact match": ("exact_match",),
    "what is said instead": ("repetition", "fluency"),
    "steps": ("steps",),
}
"""Columns of each group. All but the task aggregate are distances or counts: the smallest is best."""
Row = Mapping[str, float]
"""Column -> its value for one arm, subject and seed."""


def distances(after: Row, before: Row, retrained: Sequence[Row]) -> dict[str, float]:
    """The columns of one run, from the raw measurements of the unlearned, the untouched and the retrained models.

    Args:
        after: `task_aggregate`, `auc_*`, `unseen_nll`, `exact_match`, `repetition`, `fluency` (log perplexity), `steps`
            and, where measured, `facts_nll`.
        before: The same of the subject.
        retrained: The same of one or more retrained models.
    """
    columns = {name: after[name] for name in ("task_aggregate", "exact_match", "steps")}
    for name in (*GROUPS["membership"], *GROUPS["what is said instead"]):
        columns[name] = abs(after[name] - statistics.fmean(row[name] for row in retrained))
    columns["drift"] = abs(after["unseen_nll"] / before["unseen_nll"] - 1)
    if "facts_nll" in after:
        columns["facts"] = abs(after["facts_nll"] / before["facts_nll"] - 1)
    return columns


def mean_ranks(runs: Mapping[tuple[str, str, int], Row]) -> dict[str, float]:
    """Arm -> mean rank over groups, seeds and subjects.

    Args:
        runs: (arm, subject, seed) -> columns of `distances`; every arm has the same subjects and seeds.
    """
    places = sorted({(subject, seed) for _, subject, seed in runs})
    arms = sorted({arm for arm, _, _ in runs})
    of: dict[str, dict[str, list[float]]] = {arm: {} for arm in arms}
    for subject, seed in places:
        rows = {arm: runs[arm, subject, seed] for arm in arms}
        for columns in GROUPS.values():
            known = [name for name in columns if all(name in row for row in rows.values())]
            ranked = [ranks({arm: _cost(name, row) for arm, row in rows.items()}) for name in known]
            for arm in arms if known else ():
                of[arm].setdefault(subject, []).append(statistics.fmean(by_arm[arm] for by_arm in ranked))
    return {arm: statistics.fmean(map(statistics.fmean, by_subject.values())) for arm, by_subject in of.items()}


def ranks(costs: Mapping[str, float]) -> dict[str, float]:
    """Name -> rank, 1 for the smallest cost; equal costs share the mean of their places."""
    values = sorted(costs.values())
    return {name: values.index(cost) + (values.count(cost) + 1) / 2 for name, cost in costs.items()}


def _cost(name: str, row: Row) -> float:
    return -row[name] if name == "task_aggregate" else row[name]
