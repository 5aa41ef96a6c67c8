"""What a run directory holds, read for the report; everything beyond the manifest is optional.

Results of another model, adapter or data than the run's are left out, and a sentence says so.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from expunge.config import SPLIT
from expunge.errors import RunError
from expunge.evaluation.earlier import texts_in
from expunge.evaluation.results import FINGERPRINT, of_other_keys, other_subject, read_results
from expunge.evaluation.same_model import same_model
from expunge.report.scores import Score, read_scores
from expunge.runs.directory import check_no_links
from expunge.runs.record import check_adapter_kept, read_calibration, read_manifest, read_steps
from expunge.utils.coarse import few, power_of_two
from expunge.utils.files import fingerprint, settle

ROLES = {
    "after": ("results_after.json", "results.json"),
    "before": ("results_before.json",),
    "retrained": ("results_retrained.json",),
}
"""Which results files may play which part: the newest that is of this run counts."""
ALIKE = ("max_new_tokens", "prompt_format", "samples", "temperature", "limit", "dtype", "load_in_4bit")
"""Settings of an evaluation that must be the same for its numbers to be compared."""
LOSSES = "forget", "nll"
OWN_MODEL = "the run's own model, which is no retrained one"
Values = Mapping[tuple[str, str], Mapping[str, float]]
"""(set, metric) -> id -> value."""


STEERED_TOO = (
    "{}: its membership attacks are also on the texts that steered the run, which look forgotten for that reason "
    "alone: `expunge evaluate --run` leaves them out."
)


@dataclass(frozen=True)
class RunData:
    """One run directory.

    Attributes:
        path: The folder.
        name: What the page calls it.
        manifest: Content of manifest.json.
        steps: Lines of metrics.jsonl.
        results: `before`, `after`, `retrained` -> content of the results file, where there is one.
        scores: The same roles -> key -> score; the reference's also where only the file of `after` names them.
        values: Role -> per-example values.
        calibration: Content of calibration.json; empty where no unseen text steered the adapter.
        warnings: Sentences on files that are left out, or hard to compare.
    """

    path: Path
    name: str
    manifest: dict[str, Any]
    steps: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    scores: dict[str, dict[str, Score]] = field(default_factory=dict)
    values: dict[str, Values] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def settings(self) -> dict[str, Any]:
        """The resolved settings."""
        return dict(self.manifest.get("settings", {}))

    @property
    def reference(self) -> str:
        """What the model is that plays the part `retrained`: `retrained`, or `origin`, the one from before."""
        return "origin" if self.compared.get("kind") == "origin" and "retrained" not in self.results else "retrained"

    @property
    def compared(self) -> dict[str, Any]:
        """What the results after say of the model that they compare with."""
        return dict(self.results.get("after", {}).get("reference") or {})

    def title(self, role: str) -> str:
        """What page and card call the model that plays a part."""
        return self.reference if role == "retrained" else role

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return bool(self.manifest.get("status") == "done")

    @property
    def losses(self) -> dict[str, dict[str, float]]:
        """Set -> `before`, `after` in nats per completion token."""
        return dict(self.manifest.get("loss_nats_per_completion_token", {}))


def read_run(path: str | Path | RunData) -> RunData:
    """Read one run directory; one that has been read is given back.

    Raises:
        RunError: Not a run directory, or its manifest or metrics.jsonl is damaged.
        DataError: A results file or a file of per-example values is damaged.
    """
    if isinstance(path, RunData):
        return path
    path = Path(path)
    check_no_links(path)
    settle(path)
    if not (path / "manifest.json").is_file():
        raise RunError(f"{path}: not a run directory (no manifest.json): give the --output of `expunge unlearn`")
    manifest = read_manifest(path / "manifest.json")
    adapter = check_adapter_kept(path, manifest)
    log = path / "metrics.jsonl"
    run = RunData(path, path.name or path.resolve().name, manifest, list(read_steps(log)) if log.is_file() else [])
    run.calibration.update(read_calibration(path) or {})
    for role, names in ROLES.items():
        there = [file for name in names if (file := path / name).is_file()]
        for file in sorted(there, key=lambda file: -file.stat().st_mtime_ns):
            results = read_results(file)
            if role in run.results:
                run.warnings.append(f"{file.name} is left out: other results {role} are newer.")
            elif why := _foreign(role, results, run, adapter) or (role == "retrained" and _same_as_ours(file, run)):
                run.warnings.append(f"{file.name} is left out: it is of {why}. Evaluate again.")
            else:
                run.results[role], run.scores[role] = results, read_scores(results, file)
                attacked = any(score.family == "membership" and score.known for score in run.scores[role].values())
                steered = role == "after" and attacked and run.calibration.get("selection_hmac")
                if steered and not any("did not steer" in note for note in results.get("not_measured", ())):
                    run.warnings.append(STEERED_TOO.format(file.name))
                if file.with_suffix(".parquet").is_file():
                    run.values[role] = read_values(file.with_suffix(".parquet"))
    _add_named_reference(run)
    return run


def read_values(path: Path) -> Values:
    """Per-example values. Those of a set of few texts are powers of two, as its means are: the page may be passed on.

    Raises:
        DataError: It is no file of them.
    """
    from expunge.evaluation.values_file import (
        read_values_file,  # loads what a run without such a file need not wait for
    )

    found = {key: values.by_id for key, values in read_values_file(path).items()}
    return {
        key: {identity: power_of_two(value) for identity, value in values.items()}
        if few({key[0]: texts_in(values)})
        else values
        for key, values in found.items()
    }


def _foreign(role: str, results: Mapping[str, Any], run: RunData, adapter: str | None) -> str:
    """What the numbers of a results file are of, if not of what this run is about; empty if nothing speaks against."""
    subject = results.get("fingerprint") or {}
    base, weights = subject.get("base"), run.manifest["model_sha256"]
    name = run.manifest["settings"].get("model")
    if base and name == results.get("model") and fingerprint(str(name), "") in (base, weights):
        base = weights  # a name on the Hub of which one of them knows no commit
    merged = subject.get("merged") if base != weights else None  # a run may be on a merged model
    theirs = merged or subject.get("adapter")
    if role == "before" and (theirs or results.get("adapter")):
        return "a model with an adapter, and not of the untouched model"
    if role == "after" and merged and subject.get("adapter"):
        return "a merged model with a further adapter"
    adapter = adapter or run.manifest.get("adapter_fingerprint")  # where the folder is gone
    if role == "after" and adapter and theirs not in (None, adapter):
        return "another adapter, or of this one at another scale"
    if role == "after" and base == weights and not theirs:
        return "the untouched model"
    if role == "retrained" and base and (base == weights or (theirs and theirs == adapter)):
        return OWN_MODEL
    if role != "retrained" and not base:
        return "a model that it does not tell (stored generations)"
    if role != "retrained" and base != weights and not merged:
        return "another model than the run's"
    if role == "after" and _other_texts(run, results):
        return "other texts than those that the run was made to forget"
    formats = (run.manifest.get("prompt_format") or {}).get("chosen"), subject.get("prompt_format")
    if role == "after" and results["benchmark"] != "muse" and all(formats) and formats[0] != formats[1]:  # has its own
        return f"another prompt format ({formats[1]}) than the run's ({formats[0]})"
    after = run.results.get("after", {})
    alike = [part for part in other_subject(after, results) if part.endswith(" data") or role == "before"]
    if other := [part for part in alike if part != FINGERPRINT["base"]]:
        return f"something else than the results of the unlearned model ({', '.join(other)})"
    made = after.get("settings") or {}, results.get("settings") or {}
    what = "of the retrained model" if role == "retrained" else role
    if of_other_keys(after, results):
        run.warnings.append(
            f"The results {what} and those after were made by different users: whether they are of the same data is "
            "not known."
        )
    run.warnings.extend(
        f"The results {what} were made with {name} {made[1][name]}, those after with {made[0][name]}: they can differ "
        "for that reason alone."
        for name in ALIKE
        if role in ("before", "retrained") and name in made[0] and name in made[1] and made[0][name] != made[1][name]
    )
    return ""


def _same_as_ours(file: Path, run: RunData) -> str:
    """That results are of the run's own model, by the losses of the texts to forget; empty where they are not, or where
    the values per row are not there.
    """
    values = file.with_suffix(".parquet")
    theirs = read_values(values).get(LOSSES, {}) if values.is_file() else {}
    ours = (run.values.get(role, {}).get(LOSSES, {}) for role in ("after", "before"))
    return OWN_MODEL if any(same_model(known, theirs) for known in ours) else ""


def _other_texts(run: RunData, results: Mapping[str, Any]) -> bool:
    """Whether results are of another forget set than the run's, as far as that is known."""
    benchmark, run_benchmark = results["benchmark"], run.settings.get("benchmark") or "custom"
    if benchmark in SPLIT:  # asks for rows of other files than those that a run is given, which may be the user's
        pair = [given.get("split") or SPLIT[benchmark] for given in (run.settings, results.get("settings") or {})]
        return run_benchmark != "custom" and (run_benchmark != benchmark or pair[0] != pair[1])
    pair = [(given.get("texts") or {}).get("forget") for given in (run.manifest, results.get("fingerprint") or {})]
    return same_texts(*pair) is False


def same_texts(one: str | None, other: str | None) -> bool | None:
    """Whether two hashes stand for the same texts; None where one is missing, or they are under different keys."""
    if not (one and other) or one.partition(":")[0] != other.partition(":")[0]:
        return None
    return one == other


def _add_named_reference(run: RunData) -> None:
    """The scores of a reference model: its own file's, else those that the file of the unlearned model names; of an
    attack on other texts than those that did not steer the run, the named ones.
    """
    after = run.scores.get("after", {})
    named = {key: score.of_reference for key, score in after.items() if not math.isnan(score.reference)}
    if "retrained" in run.results and run.compared.get("kind") == "origin":
        named = {}  # a retrained model goes before the one from before
        after |= {key: replace(score, reference=math.nan, difference=None) for key, score in after.items()}
    if named or "retrained" in run.scores:
        scores = run.scores.get("retrained", {})
        attacks = {key for key in named.keys() & scores.keys() if scores[key].family == "membership"}
        others = {key for key in attacks if _texts(scores[key]) != _texts(after[key])}
        run.scores["retrained"] = named | {key: score for key, score in scores.items() if key not in others}


def _texts(attack: Score) -> tuple[int | None, ...]:
    return attack.members, attack.nonmembers, attack.n
