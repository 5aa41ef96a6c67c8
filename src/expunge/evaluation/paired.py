"""What changed from one model to another on the same rows: differences with paired 95 % intervals.

Rows that both models were measured on count, each against itself, with documents as the unit; that is far sharper than
two intervals side by side, since most of the spread between rows is the same for both models.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from expunge.errors import DataError
from expunge.evaluation.estimate import Estimate
from expunge.evaluation.measurement import Values
from expunge.evaluation.metrics.registry import HOLDOUT
from expunge.evaluation.stats import auc_difference_estimate, difference_estimate

Table = Mapping[tuple[str, str], Values]
"""(set, metric) -> values, as in the file of per-example values."""
SIDES = (("member", "forget"), ("nonmember", "holdout"))
"""What the sets of the two sides of membership attacks are called."""


def paired_difference(metric: str, before: Table, after: Table) -> Estimate | None:
    """`after` less `before` in one entry of `metrics`, `<set>/<metric>[/<task>]`; None for other than means and AUCs.

    Raises:
        DataError: The two have no row in common.
    """
    if metric.startswith("membership/"):
        attack = metric.removeprefix("membership/")
        return _auc_difference(attack.removesuffix("_auc"), before, after) if attack.endswith("_auc") else None
    key, task = _rows_of(metric, before)
    if key not in before or key not in after:
        return None
    if task and task not in before[key].tasks:
        return None  # not a part of the rows, but a number of two sides
    old, new = (table[key].of_task(task) if task else table[key] for table in (before, after))
    old, new = _aligned(metric, old, new)
    kept, weights = new.mixed_as(after.get(("forget", key[1])) if key[0] == HOLDOUT and not task else None)
    first = old.of_tasks({*kept.tasks}).values
    return difference_estimate(first, kept.values, kept.documents, weights=weights)


def shown_difference(metric: str, before: Table, after: Table) -> Estimate | None:
    """`paired_difference` as it may be passed on: of few texts to forget as coarse as the metric itself,
    without a value where that has none.

    Raises:
        DataError: As `paired_difference`.
    """
    change = paired_difference(metric, before, after)
    if change is not None and change.members is not None and change.nonmembers is not None:
        return change.withheld(change.members, change.nonmembers)
    if change is None or not metric.startswith("forget/"):
        return change
    key, task = _rows_of(metric, after)
    return change.rounded() if key in after and after[key].tells(task) else change.coarse()


def changes(metrics: Iterable[str], before: Table, after: Table) -> dict[str, dict[str, Any]]:
    """Metric -> its paired change, value, low, high and the rows that both have, as results files hold it."""
    found = {name: shown_difference(name, before, after) for name in metrics}
    return {name: {**change.ends(), "n": change.n} for name, change in found.items() if change is not None}


def _rows_of(metric: str, table: Table) -> tuple[tuple[str, str], str]:
    """Under which key a metric's rows stand in a table, and of which task they are."""
    set_name, _, name = metric.partition("/")
    if (set_name, name) in table:
        return (set_name, name), ""
    name, _, task = name.partition("/")
    return (set_name, name), task


def _auc_difference(attack: str, before: Table, after: Table) -> Estimate | None:
    pairs: list[list[Values]] = []
    for names in SIDES:
        keys = [(name, f"membership/{attack}") for name in names]
        key = next((key for key in keys if key in before and key in after), None)
        if key is None or not (before[key].ids and after[key].ids):
            return None
        pairs.append([*_aligned(f"membership/{attack}", before[key], after[key])])
    (old_members, new_members), (old_others, new_others) = pairs
    change = auc_difference_estimate(
        (old_members.values, old_others.values),
        (new_members.values, new_others.values),
        (new_members.documents, new_others.documents),
    )
    return replace(change, members=len(new_members.ids), nonmembers=len(new_others.ids))


def _aligned(what: str, before: Values, after: Values) -> tuple[Values, Values]:
    """The rows that both have, in one order."""
    places = {row: i for i, row in enumerate(zip(before.ids, before.tasks, strict=True))}
    pairs = [(places[row], i) for i, row in enumerate(zip(after.ids, after.tasks, strict=True)) if row in places]
    if not pairs:
        raise DataError(f"{what}: the two have no row in common: both must be measured on the same data")
    old, new = zip(*pairs, strict=True)
    return before.at(old), after.at(new)
