"""Whether results are of the texts that the run was given, by hashes of these, as far as both are known."""

from collections.abc import Mapping
from typing import Any

from expunge.config import SPLIT
from expunge.report.run_data import RunData, same_texts

TRAINED, APART, OTHER = "trained on", "set apart", "other"


def kept_texts(run: RunData) -> dict[str, str]:
    """Set of texts to keep that was measured -> what its texts were to the run: `TRAINED`, `APART` or `OTHER`.

    Left out are sets of which that is not known: of runs without texts to keep, of results without hashes or under
    another key, and of a benchmark that asks in its own words. All texts to keep together count as trained on.
    """
    given, measured = _hashes(run)
    trains = run.manifest.get("rows", {}).get("retain", 1)
    parts = {"test": APART, "retain": TRAINED if trains else APART, "kept": TRAINED if trains else APART}
    ours = {part: given[part] for part in parts if given.get(part)}
    found = {}
    for name in ("retain", "test"):
        alike = {part: same_texts(digest, measured.get(name)) for part, digest in ours.items()}
        if alike and None not in alike.values():
            found[name] = next((parts[part] for part, same in alike.items() if same), OTHER)
    return found


def other_unseen(run: RunData) -> bool:
    """Whether the unseen texts that were measured are known to be others than the run's."""
    given, measured = _hashes(run)
    alike = [same_texts(given.get(part), measured.get("holdout")) for part in ("holdout", "unsteered")]
    return True not in alike and False in alike


def _hashes(run: RunData) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Set -> hash of its texts, as the run was given them and as they were measured."""
    results = run.results.get("after", {})
    if results.get("benchmark") in SPLIT:
        return {}, {}
    return run.manifest.get("texts") or {}, (results.get("fingerprint") or {}).get("texts") or {}
