"""What the page says beside the scores: cost, method, where everything comes from, and what was not measured."""

import re
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from expunge.config import SETS
from expunge.evaluation.earlier import texts_in
from expunge.report.groups import Group, short
from expunge.report.losses import losses_of
from expunge.report.run_data import RunData
from expunge.report.scores import number
from expunge.runs.record import ALL_DONE, DATA_FILES, without_files
from expunge.utils.coarse import HALF, few
from expunge.utils.text import MISSING, show_bytes, show_duration, show_number

LEAST_FORGOTTEN = 10

Table = tuple[list[str], list[list[str]]]
"""Heads and lines."""


def title(run: RunData) -> str:
    """What was asked, in the words of whoever asked, or else how many texts are to be forgotten."""
    asked = run.settings.get("title")
    return str(asked) if asked else f"Forget {texts(run)}"


def texts(run: RunData) -> str:
    """How many texts are to be forgotten, in words."""
    count = run.manifest.get("rows", {}).get("forget")
    return "some texts" if count is None else f"{count:,} text{'s' if count != 1 else ''}"


def losses(groups: Sequence[Group]) -> Table:
    """Loss of each set before and after; of several runs of one configuration the mean and standard deviation."""
    lines = []
    for group in groups:
        for name in dict.fromkeys(name for run in group.runs for name in run.losses):
            pairs = [pair for run in group.runs if (pair := losses_of(run, name))]
            change = _spread([after - before for before, after in pairs])
            sides = [_spread([pair[side] for pair in pairs]) for side in (0, 1)]
            lines.append(
                [f"{group.letter}: {group.title}", name, *sides, ("+" if change[0].isdigit() else "") + change]
            )
    heads = ["runs", "texts", "before", "after", "change"]
    return (heads[1:], [line[1:] for line in lines]) if len(groups) == 1 else (heads, lines)


def _spread(values: Sequence[float]) -> str:
    if len(values) < 2:
        return show_number(values[0]) if values else MISSING
    return f"{show_number(statistics.fmean(values))} ± {show_number(round(statistics.stdev(values), 3))}"


def cost(runs: Sequence[RunData]) -> Table:
    """What every run took."""
    lines = []
    for run in runs:
        manifest = run.manifest
        counts = [step["tokens"] for step in run.steps if "tokens" in step]
        timed = manifest.get("timed_steps", len(counts))  # fewer of a run that was resumed
        tokens, lately = sum(counts), sum(counts[max(0, len(counts) - timed) :])
        seconds = number(manifest.get("training_seconds"))
        lines.append(
            [
                run.name,
                _count(manifest.get("steps")),
                show_duration(seconds) + (f" (the last {timed:,} steps)" if 0 < timed < len(counts) else ""),
                show_duration(number(manifest.get("total_seconds"))),
                f"{tokens:,}" if tokens else MISSING,
                f"{lately / seconds:,.0f}" if lately and seconds else MISSING,
                show_bytes(number(manifest.get("peak_memory_bytes"))),
            ]
        )
    return ["run", "steps", "training", "in all", "tokens trained on", "tokens/s", "peak memory"], lines


def stops(runs: Sequence[RunData]) -> list[str]:
    """Where the runs stopped and why, a sentence for those of which the same is to be said."""
    found: dict[str, list[str]] = {}
    for run in runs:
        found.setdefault(_stopped(run), []).append(run.name)
    said = [f"{', '.join(names[:8])}{' …' if len(names) > 8 else ''}: {text}." for text, names in found.items()]
    return said + [
        f"{run.name}: the adapter was then set to {run.calibration['scale']:g} times its trained scale (calibration: "
        f"{run.calibration['verdict']})."
        for run in runs
        if "verdict" in run.calibration and "best_step" not in run.calibration
    ]


def _stopped(run: RunData) -> str:
    steps = run.manifest.get("steps") or (run.steps[-1]["step"] if run.steps else 0)
    selection = run.manifest.get("selection") or {}
    if {"stopped", "best_step", "scale", "verdict"} <= selection.keys():
        scale = selection["scale"]
        at = "as it was trained" if scale == 1 else f"at {scale:g} times its trained scale"
        return (
            f"stopped after {steps:,} steps: {selection['stopped']}. The state of step {selection['best_step']:,} was "
            f"taken {at}: {selection['verdict']}"
        )
    if not run.finished:
        return f"not finished, the log ends at step {steps:,}"
    limit, ended = run.settings.get("max_steps"), run.manifest.get("ended", ALL_DONE)
    if limit and steps >= limit:
        return f"stopped after {steps:,} steps because max_steps said so; no target decided it"
    if ended != ALL_DONE:
        return f"stopped after {steps:,} steps: {ended}; no target decided it"
    epochs = run.steps[-1].get("epoch") if run.steps else None
    passes = f" in {epochs} epochs" if epochs else ""
    return f"went to the end of the schedule, {steps:,} steps{passes}; no target decided it"


def formula(run: RunData) -> tuple[str, list[list[str]]]:
    """The loss as a sum of its weighted terms, and a line on each: name, formula, source."""
    used = [term for term in run.manifest.get("terms", []) if term["weight"] != 0]
    total = " + ".join(f"{short(term['weight'])} · {term['name']}" for term in used)
    lines = [[term[name] or MISSING for name in ("name", "formula", "source")] for term in used]
    return f"loss = {total}" if total else "", lines


def settings(group: Group) -> list[tuple[str, str]]:
    """All resolved settings but those that name files."""
    shown = without_files(group.runs[0].settings)
    if len(group.runs) > 1:
        shown["seed"] = ", ".join(str(run.settings.get("seed")) for run in group.runs)
    return [(name, MISSING if value is None else short(value)) for name, value in shown.items()]


def data(runs: Sequence[RunData]) -> Table:
    """Sizes of the sets of texts; runs on the same data share their lines."""
    lines = []
    for run in runs:
        rows, tokens = run.manifest.get("rows", {}), run.manifest.get("tokens", {})
        for name in SETS:
            line = [name, _count(rows.get(name)), _count(tokens.get(name))]
            if rows.get(name) and line not in lines:
                lines.append(line)
    return ["texts", "rows", "tokens"], lines


def provenance(runs: Sequence[RunData]) -> Table:
    """Versions, hardware, hashes and times of every run; what is the same for all of them stands once."""
    facts: dict[str, list[str]] = {}
    for i, run in enumerate(runs):
        manifest = run.manifest
        versions = manifest.get("versions", {})
        hardware = manifest.get("hardware", {})
        entries = {
            "model": short(run.settings.get("model", MISSING)),
            "model weights, SHA-256": str(manifest.get("model_sha256", MISSING)),
            "adapter, SHA-256": str(manifest.get("adapter_sha256", MISSING)),
            "seed": str(run.settings.get("seed", MISSING)),
            "started": moment(manifest.get("started")),
            "finished": moment(manifest.get("finished")),
            "hardware": " · ".join(f"{name} {value}" for name, value in hardware.items()) or MISSING,
            "prompt format": str((manifest.get("prompt_format") or {}).get("chosen", MISSING)),
            "versions": " · ".join(f"{name} {value}" for name, value in versions.items()) or MISSING,
        }
        for name, value in entries.items():
            facts.setdefault(name, [MISSING] * len(runs))[i] = value
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
    sides = {role: run.values.get(role, {}).get(("forget", "nll"), {}) for role in ("after", "before", "retrained")}
    roles = [role for role, values in sides.items() if values]
    if "after" not in roles:
        return None
    lowest = sorted(sides["after"], key=lambda identity: sides["after"][identity])[:LEAST_FORGOTTEN]
    told = partial(_coarse, few_texts=few({"forget": texts_in(sides["after"])}))
    return ["id", *map(run.title, roles)], [
        [identity, *(told(sides[role].get(identity)) for role in roles)] for identity in lowest
    ]


def _coarse(value: float | None, *, few_texts: bool) -> str:
    """A loss in steps; that of one of few texts is a power of two already."""
    if value is None:
        return MISSING
    step = int(value // HALF)
    return f"about {value:g}" if few_texts else f"{step * HALF:g} to {(step + 1) * HALF:g}"


def warnings(runs: Sequence[RunData]) -> list[str]:
    """What the runs warned of, without the names of the files of data."""
    found: dict[str, None] = {}
    for run in runs:
        hide = hidden_names(run)
        found |= dict.fromkeys(map(hide, run.manifest.get("warnings", [])))
    return list(found)


def hidden_names(run: RunData) -> Callable[[str], str]:
    """A function that puts the kind of a file of data in the place of its name."""
    names: dict[str, str] = {}
    for name in DATA_FILES:
        value = run.settings.get(name)
        if isinstance(value, str) and len(value) > 1 and ("/" in value or "." in value):
            names[value] = f"the {name} file"
            if Path(value).suffix:  # a folder's name may be any word
                names[Path(value).name] = f"the {name} file"

    def hide(text: str) -> str:
        for value in sorted(names, key=len, reverse=True):
            text = re.sub(rf"(?<!\w){re.escape(value)}(?!\w)", names[value], text)
        return text

    return hide


def moment(stamp: Any) -> str:
    """A time as people write it."""
    text = str(stamp or "unknown")
    return f"{text[:16].replace('T', ' ')} UTC" if text.endswith("+00:00") else text


def model_name(run: RunData) -> str:
    """The model's name, of a path the last part."""
    return Path(str(run.settings.get("model", "a model"))).name


def _count(value: int | None) -> str:
    return MISSING if value is None else f"{value:,}"
