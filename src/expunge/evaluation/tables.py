"""Results as plain text for a terminal, narrower than 100 columns."""

from collections.abc import Mapping, Sequence
from typing import Any

from expunge.utils.coarse import TELLING, few
from expunge.utils.text import MISSING, show_number

ROWS = (
    ("forget", "regurgitation", "↓"),
    ("forget", "knowledge", "↓"),
    ("retain", "regurgitation", "↑"),
    ("retain", "knowledge", "↑"),
)

SAME = {
    "truth_ratio_ks_p": "by truth ratios (KS test)",
    "loss_ks_p": "by losses of forget texts",
}
"""Tests against a model that never saw the forget set: a small p says that the two can be told apart."""


AIMS = {
    "forget": "forget ↑",
    "retain": "retain ↓",
    "test": "retain, not trained on ↓",
    "holdout": "holdout (as before)",
    "instead": "instead ↓",
}
"""Set of texts -> where its loss is meant to go."""


def loss_table(losses: Mapping[str, Mapping[str, float]], texts: Mapping[str, int]) -> str:
    """Mean losses before and after, as a manifest has them, one set of texts a line; `texts` counts them."""
    lines = ["nats per completion token     before     after"]
    coarse = [name for name in losses if few({name: texts.get(name, 0)})]
    for name, pair in losses.items():
        digits = 1 if name in coarse else 3
        before, after = (f"{pair[when]:.{digits}f}" for when in ("before", "after"))
        lines.append(f"  {AIMS.get(name, name):<25}{before:>9} {after:>9}")
    if coarse:
        few_texts = f"exact losses of fewer than {TELLING} texts give short secrets away"
        lines.append(f"  one digit: to half a nat, since {few_texts}")
    return "\n".join(lines)


def scale_table(curve: Sequence[Mapping[str, float]], chosen: float) -> str:
    """What each scale of an adapter does on the selection texts, the chosen one marked."""
    titles = ("scale", "AUC", "AUC min-k", "NLL: forgotten", "unseen", "exact match", "retained")
    lines = ["{:>8}{:>8}{:>11}{:>16}{:>8}{:>13}{:>10}".format(*titles)]
    lines += [
        f"{row['scale']:>8.4g}{row['auc']:>8.3f}{row['min_k_auc']:>11.3f}{row['forget_nll']:>16.3f}"
        f"{row['unseen_nll']:>8.3f}{row['exact_match']:>13.3f}{row['retained']:>10.3f}"
        + ("  <-" if row["scale"] == chosen else "")
        for row in curve
    ]
    return "\n".join(lines)


def semeval_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """The official numbers of several models side by side: column title -> the content of a results file."""
    columns = list(results.values())
    lines = [" " * 38 + "".join(f"{title[:13]:>14}" for title in results)]
    for split, name, arrow in ROWS:
        for task in dict.fromkeys(task for column in columns for task in column[split]):
            values = [column[split].get(task, {}).get(name) for column in columns]
            lines.append(_line(f"{split} {name} {task} {arrow}".replace("  ", " ")[:38], values))
    for name, label in (
        ("task_aggregate", "task aggregate ↑"),
        ("mia_auc", "membership AUC (0.5 is best)"),
        ("mia_score", "membership score ↑"),
        ("quiz", "general knowledge quiz ↑"),
        ("mmlu", "MMLU ↑"),
        ("final_score", "final score ↑"),
    ):
        values = [column.get(name) for column in columns]
        if any(value is not None for value in values):
            lines.append(_line(label, values))
    for side in ("member", "nonmember"):
        values = [column.get("mean_nll", {}).get(side) for column in columns]
        if any(value is not None for value in values):
            lines.append(_line(f"loss of {side} documents, nats/token", values))
    return "\n".join(lines)


def metrics_table(results: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> str:
    """Every metric of one results file with its 95 % interval, and the reference's where there is one.

    With `before`, the results of the untouched model, its values stand on the left. Tasks and the second
    false-positive rate are left to the file. A star says that the paired interval of the difference from the reference
    does not hold 0.
    """
    metrics = {
        name: entry
        for name, entry in results["metrics"].items()
        if (name.count("/") < 2 or name.endswith("/paraphrased")) and not name.endswith("tpr_at_5_fpr")
    }
    if not metrics:
        return ""
    compared = any("reference" in entry for entry in metrics.values())
    kind = (results.get("reference") or {}).get("kind", "retrained")
    earlier = (before or {}).get("metrics") or {}
    width = 41 if earlier else 51
    first = f"{'before':>10}{'after':>10}" if earlier else f"{'value':>10}"
    lines = [f"{'':<{width}}{first}{'95 % interval':>21}{'n':>6}" + (f"{kind:>10}" if compared else "")]
    for name, entry in metrics.items():
        low, high = show_number(entry["low"]), show_number(entry["high"])
        interval = f"{low} to {high}" if MISSING not in (low, high) else ""
        arrow = _arrow(entry)
        label = f"{name.replace('/', ' ').replace('_', ' ')[: width - len(arrow) - 1]} {arrow}"
        line = f"{label:<{width}}" + (f"{show_number(earlier.get(name, {}).get('value')):>10}" if earlier else "")
        line += f"{show_number(entry['value']):>10}{interval:>21}{entry['n'] or '':>6}"
        line += f"{show_number(entry.get('reference')):>10}{_star(entry)}" if compared else ""
        lines.append(line.rstrip())
    if compared:
        lines.append(f"* differs from the {kind} model on the same rows (paired 95 % interval)")
        tests = (results.get("reference") or {}).get("indistinguishable", {})
        same = f"as the {kind} model, "
        lines += [f"{same + SAME[name]:<52}p = {p:.2g}" for name, p in tests.items() if p is not None and p == p]
    return "\n".join([*lines, *_reasons(metrics)])


FACTS = {"key_fact": "key facts said", "refusal": "refused"}
"""Metrics that count answers, and what a sentence calls them."""


def facts_lines(results: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> list[str]:
    """How many answers say their fact, and how many decline, a set a line, with the paired change where it is known.

    Of unseen texts there is none: their number is a mean in the mixture of tasks of the texts to forget, no count.
    """
    earlier, changes = (before or {}).get("metrics") or {}, results.get("before") or {}
    found = []
    for key, entry in results["metrics"].items():
        set_name, _, name = key.partition("/")
        name, _, again = name.partition("/")
        if set_name == "holdout" or name not in FACTS or again not in ("", "paraphrased") or entry["value"] is None:
            continue
        rows, was, change = entry["n"], earlier.get(key, {}).get("value"), changes.get(key) or {}
        told = [] if was is None else [f"{round(was * rows)} before"]
        if change.get("low") is not None:
            low, high = (f"{round(change[end] * rows):+d}" for end in ("low", "high"))
            told.append(f"change {low} to {high}, 95 % interval")
        line = f"{set_name}{f', {again}' if again else ''}, {FACTS[name]}:".replace("_", " ")
        found.append(f"{line:<38}{round(entry['value'] * rows)} of {rows}" + (f" ({'; '.join(told)})" if told else ""))
    return found


def _reasons(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Why numbers or their intervals are missing, a line for each reason."""
    found: dict[tuple[str, str], list[str]] = {}
    for name, entry in metrics.items():
        what = "value" if entry["value"] is None else "interval" if entry["low"] is None else ""
        if what and entry.get("reason"):
            found.setdefault((what, entry["reason"]), []).append(name)
    return [
        f"note      no {what} of {names[0]}{f' and {len(names) - 1} others' if len(names) > 1 else ''}: {reason}"
        for (what, reason), names in found.items()
    ]


def _star(entry: Mapping[str, Any]) -> str:
    change = entry.get("difference") or {}
    low, high = change.get("low"), change.get("high")
    return "*" if low is not None and high is not None and (low > 0 or high < 0) else ""


def _arrow(entry: Mapping[str, Any]) -> str:
    if entry["direction"] == "target":
        return f"→ {entry['target']:.3g}"
    return {"higher": "↑", "lower": "↓"}.get(entry["direction"], "")


def _line(label: str, values: list[float | None]) -> str:
    return f"{label:<38}" + "".join(f"{show_number(value):>14}" for value in values)
