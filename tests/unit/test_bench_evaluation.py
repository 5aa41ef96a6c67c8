"""The tables of docs/evaluation.md and docs/papers.md come from the code, and say what the files say."""

import json
import math
from statistics import harmonic_mean

import numpy as np
import pytest

from bench import report
from dev import losses, metrics
from dev.parity.__main__ import PAGE, PARTS, table
from dev.parity.golden import Comparison, Golden
from experiments import subjects
from expunge.evaluation.estimate import NAN, Estimate
from expunge.evaluation.measurement import Values
from expunge.evaluation.metrics import ATTACKS, METRICS
from expunge.evaluation.results import SCHEMA
from expunge.evaluation.stats import auc_estimate, tpr_estimate
from expunge.evaluation.values_file import values_path, write_values
from expunge.utils.files import write_json

KNOWN = {name: metric for name, metric in {**METRICS, **ATTACKS}.items() if metric.direction}


def between(page, marker):
    return page.read_text().split(f"<!-- {marker} -->\n")[1].split(f"\n<!-- /{marker} -->")[0]


def test_the_table_of_metrics_is_up_to_date():
    assert between(metrics.PAGE, metrics.MARKER) == metrics.table(), "run `python -m dev.metrics --docs`"
    for name in KNOWN:
        assert metrics.table().count(f"\n| {name} | ") == 1


def test_the_table_of_forget_losses_is_up_to_date():
    assert between(losses.PAGE, losses.MARKER) == losses.table(), "run `python -m dev.losses --docs`"


def test_the_page_of_published_numbers_describes_metrics_as_the_code_does():
    lines = [line for line in between(PAGE, "parity").splitlines()[2:] if line.startswith("| ") and line[2] != " "]
    rows = [line.strip("| ").split(" | ")[:3] for line in lines]
    named = {name: described for name, *described in rows}
    assert len(named) > 20
    assert named.keys() <= {*METRICS, *ATTACKS, *PARTS}
    for name, metric in (METRICS | ATTACKS).items():
        assert named.get(name, [metric.definition, metric.source]) == [metric.definition, metric.source], (
            "python -m dev.parity --docs"
        )


def test_the_parity_table_shows_the_worst_difference_and_says_what_is_new():
    found = [Comparison("min_k", "muse", value, 1.0, 1e-3) for value in (1.0, 1.002, 0.999)]
    lines = table([("MUSE", comparison) for comparison in [*found, Comparison("auc", "", 0.5, 0.5, 0)]]).splitlines()
    assert lines[2].split(" | ")[0] == "| min_k"
    assert lines[2].endswith("| MUSE | muse | 3 | 2e-03 | 1e-03 |")
    assert lines[3] == f"| auc | {PARTS['auc']} |  | MUSE |  | 1 | 0 | 0 |"


def test_words_that_stand_for_numbers_are_read_as_numbers(tmp_path):
    (tmp_path / "metrics").mkdir()
    stored = {"terms": ["nan", 0.5, "-inf"], "text": "nan is a word here", "deep": [{"value": "inf"}]}
    (tmp_path / "metrics" / "any.json").write_text(json.dumps(stored))
    found = Golden(tmp_path).read("any")
    assert math.isnan(found["terms"][0])
    assert found["terms"][1:] == [0.5, -math.inf]
    assert (found["deep"][0]["value"], found["text"]) == (math.inf, "nan is a word here")
    assert math.isnan(harmonic_mean(found["terms"][:2]))
    assert harmonic_mean([0.0, *found["terms"][1:2]]) == 0


def write(path, known, reference=None):
    """Results of a model that knows the forget texts with the probability `known`."""
    rng = np.random.default_rng(3)
    level = rng.uniform(-0.05, 0.05, size=40)
    ids = tuple(f"row{i}" for i in range(40))

    def values(numbers):
        return Values(ids, ("",) * 40, ids, np.asarray(numbers))

    rows = {
        ("forget", "probability"): values(known + level),
        ("forget", "exact_match"): values(np.zeros(40)),  # blind to everything
        ("forget", "repetition"): values(0.2 + level),
        ("retain", "probability"): values(0.9 + level),
        ("member", "membership/loss"): values(known + 10 * level),
        ("nonmember", "membership/loss"): values(10 * level[::-1]),
    }
    sides = [rows[name, "membership/loss"].values for name in ("member", "nonmember")]
    found = {
        f"{name}/{metric}": row.estimate().read_as("lower" if name == "forget" else "higher", "text", "s")
        for (name, metric), row in rows.items()
        if not metric.startswith("membership")
    }
    found["membership/loss_auc"] = auc_estimate(*sides).read_as("target", "membership", "s", 0.5)
    found["membership/loss_tpr_at_5_fpr"] = tpr_estimate(*sides, 0.05).read_as("target", "membership", "s", 0.05)
    entries = {name: estimate.as_entry() for name, estimate in found.items()}
    results = {"schema": SCHEMA, "benchmark": "custom", "metrics": entries}
    if reference is not None:
        for name, entry in entries.items():
            entry["reference"] = reference["metrics"][name]["value"]
            if name.startswith("membership/"):
                entry["target"] = entry["reference"]
        results["reference"] = {"indistinguishable": {"loss_ks_p": 1e-9 if known > 0.5 else 0.4}}
    write_json(path, results)
    write_values(values_path(path), rows)
    return results


def test_the_table_of_subjects_says_which_metrics_tell(tmp_path):
    retrained = write(tmp_path / "retrained.json", 0.3)
    write(tmp_path / "before.json", 0.9, retrained)
    write(tmp_path / "after.json", 0.3, retrained)
    files = [str(tmp_path / f"{name}.json") for name in ("before", "after", "retrained")]
    must, need_not = subjects.tables(files).split("\n### ")
    told = {line.split(" | ")[0][2:]: line.removesuffix(" |").split(" | ")[-2:] for line in must.splitlines()[2:]}
    assert told["forget/probability ↓"] == ["yes", "**no**"]
    assert told["forget/exact_match ↓"] == ["**no**", "**no**"]
    assert told["membership/loss_auc →"][0] == "yes"
    assert told["membership/loss_tpr_at_5_fpr →"][1] == "**no**"
    assert told["KS test of losses of forget texts, p"] == ["yes", "**no**"]
    blind = "`forget/exact_match`, `membership/loss_tpr_at_5_fpr`"
    assert must.rstrip().endswith(f"Fail to tell the retrained model from the model before: {blind}.")
    assert "forget/repetition" in need_not
    assert "retain/probability" in need_not
    (line,) = (line for line in must.splitlines() if line.startswith("| forget/probability"))
    before, unlearned, own_retrained, change = line.split(" | ")[2:6]
    assert before.startswith("0.898")
    assert unlearned == own_retrained
    assert change == "0.600 [0.600, 0.600]"


def test_what_is_not_known_is_left_empty_in_the_table_of_subjects():
    known, bare, none = Estimate(0.5, 0.4, 0.6), Estimate(0.5), Estimate(NAN)
    assert [subjects._cell(number) for number in (known, bare, none, None)] == ["0.500 [0.400, 0.600]", "0.500", "", ""]
    assert subjects._tells(bare, known, Estimate(0.9, 0.8, 1.0)) == "yes", "by the intervals: the change has none"
    assert [subjects._tells(None, known, number) for number in (bare, none, None)] == ["", "", ""]


def test_subjects_writes_between_its_markers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(subjects, "DOCS", tmp_path)
    page = tmp_path / "evaluation.md"
    page.write_text("a\n<!-- subjects -->\n<!-- /subjects -->\nb\n")
    for name in ("before", "after", "retrained"):
        write(tmp_path / f"{name}.json", 0.5)
    subjects.main([*(str(tmp_path / f"{name}.json") for name in ("before", "after", "retrained")), "--docs"])
    assert between(page, "subjects") == capsys.readouterr().out.strip()


def test_a_page_without_the_place_is_refused(tmp_path):
    (tmp_path / "page.md").write_text("nothing")
    with pytest.raises(SystemExit, match="has no place for subjects"):
        report.write_between(tmp_path / "page.md", "subjects", "x")
