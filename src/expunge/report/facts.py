"""What the page says beside the scores: cost, settings, where everything comes from, and what was not measured."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expunge.config import SETS
from expunge.report.collect import RunData
from expunge.report.comparison import DATA_FILES, Group, of_run, short
from expunge.report.readings import number
from expunge.report.verdict import number_text

NOT_SHOWN = DATA_FILES | {"output", "columns"}
"""Settings that can hold names of files: their hashes are shown instead."""
LEAST_FORGOTTEN = 10

Table = tuple[list[str], list[list[str]]]
"""Heads and lines."""


def losses(groups: Sequence[Group]) -> Table:
    """Loss of each set before and after; of several runs of one configuration the mean and standard deviation."""
    lines = []
    for group in groups:
        for name in dict.fromkeys(name for run in group.runs for name in run.losses):
            pairs = [run.losses[name] for run in group.runs if name in run.losses]
            known = [pair for pair in pairs if None not in (number(pair["before"]), number(pair["after"]))]
            columns = (
                [pair["before"] for pair in known],
                [pair["after"] for pair in known],
                [pair["after"] - pair["before"] for pair in known],
            )
            before, after, change = map(_spread, columns)
            sign = "+" if change[0].isdigit() else ""
            lines.append([f"{group.letter}: {group.title}", name, before, after, sign + change])
    heads = ["runs", "texts", "before", "after", "change"]
    return (heads[1:], [line[1:] for line in lines]) if len(groups) == 1 else (heads, lines)


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = number_text(statistics.fmean(values))
    return f"{mean} ± {number_text(round(statistics.stdev(values), 3))}" if len(values) > 1 else mean


def cost(groups: Sequence[Group]) -> Table:
    """What every run took."""
    lines = []
    for group in groups:
        for run in group.runs:
            manifest = run.manifest
            tokens = sum(step.get("tokens", 0) for step in run.steps if isinstance(step.get("tokens"), int))
            seconds = number(manifest.get("training_seconds"))
            lines.append(
                [
                    run.name,
                    _of(manifest.get("steps"), "{:,}"),
                    _duration(seconds),
                    _duration(number(manifest.get("total_seconds"))),
                    f"{tokens:,}" if tokens else "–",
                    f"{tokens / seconds:,.0f}" if tokens and seconds else "–",
                    _bytes(number(manifest.get("peak_memory_bytes"))),
                    energy(manifest),
                ]
            )
    return ["run", "steps", "training", "in all", "tokens trained on", "tokens/s", "peak memory", "energy"], lines


def energy(manifest: Mapping[str, Any]) -> str:
    """The energy that the device reported."""
    joules = number(manifest.get("energy_joules"))
    return "not measured" if joules is None else f"{joules / 3600:,.1f} Wh"


def stops(groups: Sequence[Group]) -> list[str]:
    """Where the runs stopped and why, a sentence for those of which the same is to be said."""
    found: dict[str, list[str]] = {}
    for group in groups:
        for run in group.runs:
            found.setdefault(_stopped(run), []).append(run.name)
    said = [f"{', '.join(names[:8])}{' …' if len(names) > 8 else ''}: {text}." for text, names in found.items()]
    return said + [
        f"{run.name}: the adapter was then set to {run.calibration['scale']:g} of its trained strength (calibration: "
        f"{run.calibration.get('verdict', 'no verdict')})."
        for group in groups
        for run in group.runs
        if run.calibration and "best_step" not in run.calibration
    ]


def _stopped(run: RunData) -> str:
    steps = run.manifest.get("steps") or (run.steps[-1]["step"] if run.steps else 0)
    selection = run.manifest.get("selection")
    if isinstance(selection, Mapping) and {"stopped", "best_step", "scale", "verdict"} <= selection.keys():
        return (
            f"stopped after {steps:,} steps: {selection['stopped']}. The state of step {selection['best_step']} was "
            f"taken at {selection['scale']:g} of its trained strength ({selection['verdict']})"
        )
    if not run.finished:
        return f"not finished, the log ends at step {steps:,}"
    limit = run.settings.get("max_steps")
    if limit and steps >= limit:
        return f"stopped after {steps:,} steps because max_steps said so; no target decided it"
    epochs = run.settings.get("epochs")
    passes = f" in {epochs} epochs" if epochs else ""
    return f"went to the end of the schedule, {steps:,} steps{passes}; no target decided it"


def settings(group: Group) -> list[tuple[str, str]]:
    """All resolved settings but those that name files of data."""
    shown = {name: value for name, value in group.runs[0].settings.items() if name not in NOT_SHOWN}
    if len(group.runs) > 1:
        shown["seed"] = ", ".join(str(run.settings.get("seed")) for run in group.runs)
    return [(name, "–" if value is None else short(value)) for name, value in shown.items()]


def data(groups: Sequence[Group]) -> Table:
    """Sizes and hashes of the texts."""
    lines = []
    for group in groups:
        first: dict[str, Any] = {}
        for run in group.runs:
            if run.manifest.get("data") == first:
                continue
            first = run.manifest.get("data", {})
            rows, tokens = run.manifest.get("rows", {}), run.manifest.get("tokens", {})
            for name in SETS:
                if rows.get(name):
                    line = [name, _of(rows[name], "{:,}"), _of(tokens.get(name), "{:,}"), str(first.get(name, "–"))]
                    if line not in lines:
                        lines.append(line)
    return ["texts", "rows", "tokens", "SHA-256 of the tokenized rows"], lines


def provenance(groups: Sequence[Group]) -> Table:
    """Versions, hardware, hashes and times of every run; what is the same for all of them stands once."""
    runs = [run for group in groups for run in group.runs]
    facts: dict[str, list[str]] = {}
    for i, run in enumerate(runs):
        manifest = run.manifest
        versions = manifest.get("versions", {})
        hardware = manifest.get("hardware", {})
        own = {
            "model": short(run.settings.get("model", "–")),
            "model weights, SHA-256": str(manifest.get("model_sha256", "–")),
            "adapter, SHA-256": str(manifest.get("adapter_sha256", "–")),
            "seed": str(run.settings.get("seed", "–")),
            "started": moment(manifest.get("started")),
            "finished": moment(manifest.get("finished")),
            "hardware": " · ".join(f"{name} {value}" for name, value in hardware.items()) or "–",
            "prompt and completion joined by": str((manifest.get("join") or {}).get("chosen", "–")),
            "versions": " · ".join(f"{name} {value}" for name, value in versions.items()) or "–",
        }
        for name, value in own.items():
            facts.setdefault(name, ["–"] * len(runs))[i] = value
    if len(runs) == 1:
        return ["", ""], [[name, *values] for name, values in facts.items()]
    lines = []
    for name, values in facts.items():
        if len(set(values)) == 1:
            lines.append([name, "all\u00a0runs", values[0]])
        else:
            lines += [[name, run.name, value] for run, value in zip(runs, values, strict=True)]
    return ["", "run", ""], lines


def least_forgotten(run: RunData) -> Table | None:
    """The forget texts that the unlearned model finds most likely, by id; None without per-example values."""
    after = run.values.get("after", {}).get(("forget", "nll"))
    if not after:
        return None
    others = {role: run.values.get(role, {}).get(("forget", "nll"), {}) for role in ("before", "reference")}
    roles = [role for role, values in others.items() if values]
    lowest = sorted(after.items(), key=lambda pair: pair[1])[:LEAST_FORGOTTEN]
    lines = [
        [identity, number_text(value), *(number_text(others[role].get(identity)) for role in roles)]
        for identity, value in lowest
    ]
    return ["id", "after", *roles], lines


def unmeasured(groups: Sequence[Group]) -> list[str]:
    """What the runs do not tell, one plain sentence each; each is said once, for the runs that it holds for."""
    runs = [run for group in groups for run in group.runs]
    found: dict[str, list[str]] = {}
    for run in runs:
        for sentence in _gaps(run):
            found.setdefault(sentence, []).append(run.name)
    return [
        sentence if len(names) == len(runs) else f"{sentence} ({', '.join(names[:4])}{' …' if len(names) > 4 else ''})"
        for sentence, names in found.items()
    ]


def _gaps(run: RunData) -> list[str]:
    found = of_run(run)
    after = found.get("after", {})
    checks = [
        (run.finished, "The run is not finished: losses after unlearning are unknown."),
        ("after" in run.results, "The unlearned model was not scored: only losses are known."),
        ("before" in run.results, "The untouched model was not scored: scores cannot tell what was lost or kept."),
        ("reference" in found, "No reference: how a model that never saw the texts would score is unknown."),
        (run.manifest.get("rows", {}).get("holdout") or any(reading.family == "drift" for reading in after.values()),
         "No hold-out texts: whether unseen texts of this kind changed is unknown."),
        (not after or any(reading.bounded for reading in after.values()),
         "No intervals: how far the scores could lie off by chance of the rows is unknown."),
        (not after or any(reading.family == "membership" for reading in after.values()),
         "No membership attack was run."),
        (not after or "all/mmlu" in after or any(reading.family == "utility" for reading in after.values()),
         "General ability (MMLU or other tasks) was not measured."),
        (bool(run.values.get("after")), "No per-example values: distributions of losses cannot be shown."),
        (energy(run.manifest) != "not measured",
         "Energy was not measured: the device does not tell, the run was resumed, or several processes shared it."),
    ]  # fmt: skip
    said = [
        f"{name} is of the adapter at another strength, or of another one: evaluate again." for name in run.outdated
    ]
    said += [sentence for holds, sentence in checks if not holds]
    noted = run.results.get("after", {}).get("not_measured")
    for sentence in noted if isinstance(noted, list) else []:
        stand_in = "reference" in found and "(--reference)" in str(sentence)
        said.append("No test against the reference was run (evaluate --reference)." if stand_in else str(sentence))
    said.append("Whether the texts come back by fine-tuning, rounding or other prompts is not part of this report.")
    return list(dict.fromkeys(said))


def warnings(groups: Sequence[Group]) -> list[str]:
    """What the runs warned of."""
    found = [str(text) for group in groups for run in group.runs for text in run.manifest.get("warnings") or []]
    return list(dict.fromkeys(found))


def moment(stamp: Any) -> str:
    """A time as people write it."""
    text = str(stamp or "unknown")
    return f"{text[:16].replace('T', ' ')} UTC" if text.endswith("+00:00") else text


def model_name(run: RunData) -> str:
    """The model's name, of a path the last part."""
    return Path(str(run.settings.get("model", "a model"))).name


def _of(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, int | float) else "–"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _bytes(value: float | None) -> str:
    return "–" if value is None else f"{value / 2**30:.2f} GiB"
