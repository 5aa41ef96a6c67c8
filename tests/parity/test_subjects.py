"""The subjects of the data folder score what their own page says: task, membership, losses."""

from dataclasses import replace
from pathlib import Path
from statistics import fmean, median

import pytest

from expunge.data.lume import read_lume
from expunge.data.tokenize import PromptFormat
from expunge.evaluation.benchmarks import semeval
from expunge.evaluation.benchmarks.official_score import score
from expunge.evaluation.passes import Options, measure
from expunge.evaluation.predictions import SIDES
from expunge.model.load import load_model

TOLD = {
    "olmo-5m-validation": (
        (0.0, 1.000, 0.095, 6.215),
        (0, 0, 0.374, 0.056, 0, 0, 1, 1, 0.576, 0.963, 1, 0.993),
    ),
    "olmo-5m-validation-retrained": (
        (0.843, 0.477, 6.101, 6.063),
        (1, 0.894, 1, 0.611, 1, 0.876, 1, 0.988, 0.448, 0.920, 1, 0.993),
    ),
}
"""Folder -> task aggregate, AUC, mean loss of members and of others; twelve terms, knowledge before regurgitation."""
NONMEMBERS, TOKENS = 80, 96


@pytest.mark.slow
@pytest.mark.parametrize("name", TOLD)
def test_a_subject_is_what_its_page_says(name: str, shared: Path) -> None:
    numbers, terms = TOLD[name]
    data = read_lume(shared / "data/semeval", "validation")
    member = [
        replace(row, prompt="", completion=row.prompt + row.completion)
        for row in data.forget
        if (row.task, row.kind) == ("Task3", "sc")
    ]
    length = round(median(len(row.completion) for row in member))
    unseen = read_lume(shared / "data/semeval", "train").nonmember or []
    nonmember = [replace(row, completion=row.completion[:length]) for row in unseen[:NONMEMBERS]]
    suite = semeval.suite_of(replace(data, member=member, nonmember=nonmember))
    loaded = load_model(str(shared / "subjects" / name), dtype="float32", device="cpu")

    found = measure(loaded, suite, PromptFormat("none", end_of_text=False), Options(TOKENS, attacks=("loss",)))

    scores = score(found, suite)
    losses = [fmean(found.rows[side, "document_nll"].values) for side in SIDES]
    aggregate, mia_auc, *means = numbers
    assert scores.task_aggregate == pytest.approx(aggregate, abs=6e-4)
    assert scores.mia_auc == pytest.approx(mia_auc, abs=1e-3)  # of 2,720 pairs
    assert losses == pytest.approx(means, abs=5e-3)  # the retrained model's of members is 6.098 here, 6.101 there
    pairs = [pair for at in range(0, len(scores.terms), 2) for pair in scores.terms[at : at + 2][::-1]]
    assert pairs == pytest.approx(terms, abs=6e-4)
