"""The results file: what a benchmark measured on one model, as strict JSON that holds no text of the data.

Every benchmark has

- `metrics`: `<set>/<metric>[/<task>]` -> `{"value", "low", "high", "n", "direction", "target", "source", "family",
  "reason", "reference", "difference"}`; the reason says why a value or an interval is null, the last two are there with
  a reference model: its value, and value, low and high of the paired difference from it; of a membership AUC
  `members` and `nonmembers`, too, the texts on either side; of answers how many were `stopped` before they could hold
  what is looked for, if any;
- `fingerprint`: what the numbers are of: `base` (content of the model), `adapter` (weights and scale), `data`
  (set -> hash under the user's key), `texts` (the same of the texts alone, as the run's manifest has them) and
  `prompt_format`;
- `settings`, `reference` (the retrained model, the tests against it and the `rows` that each had) and `not_measured`
  (plain sentences);
- `unseen_said`: of the unseen texts whose completions cannot be guessed, how many are `said` word for word, of how many
  `texts`, and of how many the key `facts` are said; absent where none was asked for.

SemEval and LUME have the official numbers too: `forget`, `retain` (task -> `regurgitation`, `knowledge`), `terms`,
`task_aggregate`, `mia_auc`, `mia_score`, `mmlu`, `final_score`, described at `SemevalScores`; `missing` says why one of
them is null.
"""

from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from expunge.errors import DataError
from expunge.evaluation.estimate import Estimate
from expunge.utils.files import settle
from expunge.utils.reading import NUMBER, Each, UnreadableError, check_fields, read_object

SCHEMA = 1
NAME = (str, NoneType)
FIELDS = {
    "model?": NAME,
    "adapter?": NAME,
    "settings?": dict,
    "fingerprint?": {
        "base?": NAME,
        "adapter?": NAME,
        "merged?": NAME,
        "prompt_format?": NAME,
        "data?": Each(str),
        "texts?": Each(str),
    },
    "versions?": Each(str),
    "reference?": (dict, NoneType),
    "before?": (dict, NoneType),
    "not_measured?": [str],
    "unseen_said?": {"said": int, "texts": int, "facts?": int},
}
REFERENCE = {"kind?": str, "indistinguishable?": Each((*NUMBER, NoneType)), "rows?": Each(int)}
BEFORE = Each({"low?": (*NUMBER, NoneType)})
PACKAGES = ("torch", "transformers", "peft", "rouge-score")
"""Their versions are noted beside that of Expunge, because generations and scores can depend on them."""
NUMBERS = ("task_aggregate", "mia_auc", "mia_score", "mmlu", "final_score")
SHARE = (*NUMBER, NoneType)
OFFICIAL = {
    "forget": Each(Each(SHARE)),
    "retain": Each(Each(SHARE)),
    "terms": [SHARE],
    **dict.fromkeys(NUMBERS, SHARE),
    "quiz?": SHARE,
    "mean_nll?": Each(SHARE),
}
"""Fields of SemEval and LUME; all but losses lie between 0 and 1."""
CHANCE_AUC = 0.5
COMPARED = "kinds with unseen texts"
"""In the place of a task: the rows to forget that are of tasks of which there are unseen texts, where not all are."""
FINGERPRINT = {"base": "base model", "prompt_format": "prompt format"}
"""Parts of the fingerprint, beside the data, in which files that are compared should agree, and their names."""


def read_results(path: str | Path) -> dict[str, Any]:
    """Read a results file of any benchmark and check what every reader relies on.

    Raises:
        DataError: Not a results file, of a schema that this version does not know, or with a number that is
            none.
    """
    settle(Path(path).parent)
    results = read_object(path, DataError)
    if "schema" not in results or not isinstance(results.get("benchmark"), str):
        raise DataError(f"{path}: not a results file: it has no schema and benchmark")
    if results["schema"] != SCHEMA:
        raise DataError(f"{path}: results of schema {results['schema']!r}, this version reads schema {SCHEMA}")
    try:
        check_fields(results, FIELDS)
        check_fields(results.get("reference") or {}, REFERENCE)
        check_fields(results.get("before") or {}, BEFORE, "before")
        if results["benchmark"] in ("semeval", "lume"):
            check_fields(results, OFFICIAL)
            _check_range(results)
    except UnreadableError as error:
        raise DataError(f"{path}: field {error}") from None
    return results


def measured_metrics(path: str | Path, results: Mapping[str, Any]) -> dict[str, Estimate]:
    """Metric -> what a results file says of it, in the file's order; `path` is for messages.

    Raises:
        DataError: An entry of `metrics` does not have the form that the results file promises, or there are none.
    """
    if "metrics" not in results:
        raise DataError(f"{path}: field metrics is missing")
    metrics = results["metrics"]
    if not isinstance(metrics, dict):
        raise DataError(f"{path}: field metrics must be an object")
    return {name: Estimate.from_entry(f"{path}: metric {ascii(name)[1:-1]}", entry) for name, entry in metrics.items()}


def other_subject(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """In what two results files are not of the same thing: base model, data, prompt format; adapters may differ.

    What one of them does not say is not held against it: nor, of the same rows, other questions or answers (`forget/
    paraphrased`) that only one has.
    """
    one, other = (results.get("fingerprint") or {} for results in (first, second))
    found = [FINGERPRINT[key] for key in FINGERPRINT if one.get(key) and other.get(key) and one[key] != other[key]]
    ours, theirs = (fingerprint.get("data") or {} for fingerprint in (one, other))
    sets = dict.fromkeys((*ours, *theirs)) if ours and theirs and not of_other_keys(first, second) else {}
    told = (name for name in sets if "/" not in name or (name in ours and name in theirs))
    return found + [f"{name} data" for name in told if ours.get(name) != theirs.get(name)]


def of_other_keys(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two results files were made by users with other keys, so that their data cannot be compared."""
    prints = [(results.get("fingerprint") or {}).get("data") or {} for results in (first, second)]
    keys = [{str(digest).partition(":")[0] for digest in digests.values() if ":" in str(digest)} for digests in prints]
    return bool(keys[0] and keys[1] and keys[0] != keys[1])


def before_path(output: str | Path) -> Path:
    """Where the untouched model's results stand, beside a results file."""
    return Path(output).with_name("results_before.json")


def results_before(output: str | Path, benchmark: str) -> dict[str, Any] | None:
    """The untouched model's results on the same benchmark, beside a results file; None without.

    Raises:
        DataError: It is no results file.
    """
    path = before_path(output)
    if path.name == Path(output).name or not path.is_file():
        return None
    results = read_results(path)
    measured_metrics(path, results)
    return results if results["benchmark"] == benchmark else None


def short_name(name: str | None) -> str | None:
    """A model's name as results show it: of an absolute path the last part alone."""
    return Path(name).name if name is not None and Path(name).is_absolute() else name


def _check_range(results: Mapping[str, Any]) -> None:
    shares = {name: [results.get(name)] for name in (*NUMBERS, "quiz")} | {"terms": results["terms"]}
    for split in ("forget", "retain"):
        shares[split] = [value for means in results[split].values() for value in means.values()]
    for name, values in shares.items():
        if not all(value is None or 0 <= value <= 1 for value in values):
            raise UnreadableError(f"{name} must hold numbers between 0 and 1 or null")
