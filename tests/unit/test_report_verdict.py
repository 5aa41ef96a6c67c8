"""The verdict: every rule at its border, and never a success that the numbers do not hold."""

from pathlib import Path

import pytest

from expunge.report.collect import RunData
from expunge.report.verdict import Verdict, number_text, verdict, worst

FLOOR = 0.3


def entry(value, direction="higher", family="memorization", *, half=0.01, **more):
    bounds = {"low": None, "high": None} if half is None else {"low": value - half, "high": value + half}
    return {"value": value, **bounds, "n": 50, "direction": direction, "family": family, **more}


def metrics(forget, retain=0.9, auc=0.5, drift=0.0, *, half=0.01):
    return {
        "forget/rouge_l_recall": entry(forget, "lower", half=half),
        "retain/rouge_l_recall": entry(retain, half=half),
        "membership/loss_auc": entry(auc, "target", "membership", half=half, target=0.5),
        "holdout/drift": entry(drift, "target", "drift", half=half, target=0.0),
    }


def judge(after, before=None, reference=None, *, tests=None, status="done", losses=None) -> Verdict:
    """The verdict on a run whose files hold these metrics."""
    roles = {"before": before or metrics(1.0, auc=1.0), "after": after, "reference": reference}
    results = {role: {"schema": 1, "benchmark": "x", "metrics": own} for role, own in roles.items() if own}
    if tests:
        results["after"]["reference"] = {"model": "twin", "indistinguishable": tests}
    manifest = {"status": status, "settings": {}, "loss_nats_per_completion_token": losses or {}}
    return verdict(RunData(Path("run"), "run", manifest, results=results))


def answers(judged: Verdict) -> list[str]:
    return [finding.answer for finding in judged.findings]


REFERENCE = metrics(FLOOR, auc=0.5)


def test_three_times_yes_is_a_success():
    judged = judge(metrics(FLOOR), reference=REFERENCE)
    assert answers(judged) == ["yes", "yes", "yes"]
    assert judged.tone == "good"
    assert judged.sentence.startswith("Forgotten, kept, and not to be told apart")
    assert "0.300 (95% interval 0.290 to 0.310)" in judged.sentence


@pytest.mark.parametrize(
    ("forget", "half", "answer"),
    [
        (FLOOR + 0.06, 0.005, "yes"),  # 7 % of the gap of .7 is .049, and the interval ends below 10 %
        (FLOOR + 0.06, 0.02, "unknown"),  # the value is below, the interval's end is not
        (FLOOR + 0.10, 0.005, "partly"),
        (FLOOR + 0.36, 0.005, "no"),  # more than half of the way is left
        (FLOOR + 0.06, None, "yes"),  # without an interval the value decides
        (FLOOR + 0.08, None, "partly"),
        (0.0, 0.0, "yes"),  # below the reference nothing is left either
    ],
)
def test_forgotten_means_at_most_a_tenth_of_the_way_to_the_reference(forget, half, answer):
    judged = judge(metrics(forget, half=half), reference=REFERENCE)
    assert answers(judged)[0] == answer
    assert (judged.tone == "good") == (answers(judged) == ["yes"] * 3)


def test_without_a_reference_the_floor_is_zero_and_that_is_said():
    judged = judge(metrics(FLOOR))
    assert answers(judged)[0] == "partly"
    assert any("0 stands in" in note for note in judged.findings[0].notes)
    assert answers(judge(metrics(0.05)))[0] == "yes"


def test_a_metric_that_had_nothing_to_lose_does_not_count():
    before = metrics(1.0, auc=1.0) | {"forget/fluent_nonsense": entry(0.31, "lower")}
    after = metrics(FLOOR) | {"forget/fluent_nonsense": entry(0.31, "lower")}
    reference = REFERENCE | {"forget/fluent_nonsense": entry(0.30, "lower")}
    judged = judge(after, before, reference)
    assert answers(judged)[0] == "yes"
    assert "on the one metric" in judged.findings[0].says


def test_the_metric_on_which_most_is_left_is_named():
    before = metrics(1.0, auc=1.0) | {"forget/exact_match": entry(1.0, "lower")}
    after = metrics(FLOOR) | {"forget/exact_match": entry(0.8, "lower")}
    judged = judge(after, before, REFERENCE | {"forget/exact_match": entry(0.0, "lower")})
    assert answers(judged)[0] == "partly"
    assert "on 1 of 2 metrics" in judged.findings[0].says
    assert "exact match: 1.000 before, 0.800" in judged.findings[0].says
    assert "80% of the way is left" in judged.findings[0].says


@pytest.mark.parametrize(
    ("retain", "drift", "half", "answer"),
    [
        (0.86, 0.0, 0.002, "yes"),  # 95.6 % of .9
        (0.85, 0.0, 0.002, "no"),  # 94.4 %
        (0.85, 0.0, 0.02, "unknown"),  # the interval reaches 96.7 %
        (0.90, 0.05, 0.001, "yes"),
        (0.90, 0.2, 0.001, "no"),  # unseen texts less likely by .2 nats: damage
        (0.90, -0.2, 0.001, "no"),
        (0.95, 0.0, 0.001, "yes"),
    ],
)
def test_kept_means_95_percent_of_every_score_and_no_drift(retain, drift, half, answer):
    assert answers(judge(metrics(FLOOR, retain, drift=drift, half=half), reference=REFERENCE))[1] == answer


def test_one_damaged_score_among_many_is_damage():
    more = {f"utility/task{i}": entry(0.6, family="utility") for i in range(20)}
    before = metrics(1.0, auc=1.0) | more
    after = metrics(FLOOR) | more | {"utility/task7": entry(0.4, family="utility")}
    judged = judge(after, before, REFERENCE)
    assert answers(judged)[1] == "no"
    assert "1 of 21 scores" in judged.findings[1].says
    assert judged.lead == "Not a success: damaged"


def test_losses_of_unseen_texts_in_the_manifest_count_as_drift():
    losses = {"holdout": {"before": 2.0, "after": 2.3}}
    judged = judge(metrics(FLOOR), reference=REFERENCE, losses=losses)
    assert answers(judged)[1] == "no"
    assert "2.00 to 2.30 nats per token (+15%)" in judged.findings[1].says


def test_unseen_texts_of_another_half_are_no_drift():
    """Before: all of them; after: those that did not steer the run, which may be harder."""
    before = metrics(1.0, auc=1.0) | {"nonmember/nll": entry(1.0, family="losses") | {"n": 100}}
    after = metrics(FLOOR) | {"nonmember/nll": entry(1.3, family="losses") | {"n": 50}}
    assert answers(judge(after, before, REFERENCE))[1] == "yes"
    after["holdout/drift"]["value"] = 0.2  # of each text by itself
    judged = judge(after, before, REFERENCE)
    assert "1.10 to 1.30 nats per token (+18%)" in judged.findings[1].says
    own = {name.replace("nonmember/nll", "holdout/document_nll"): value for name, value in after.items()}
    assert "1.10 to 1.30 nats per token (+18%)" in judge(own, before, REFERENCE).findings[1].says
    del after["holdout/drift"]
    assert "nats per token" not in judge(after, before, REFERENCE).findings[1].says
    before["nonmember/nll"]["n"] = 50
    assert "1.00 to 1.30 nats per token (+30%)" in judge(after, before, REFERENCE).findings[1].says


@pytest.mark.parametrize(
    ("auc", "half", "answer"),
    [
        (0.5, 0.09, "yes"),
        (0.5, 0.2, "unknown"),  # centred, but it shows nothing
        (0.62, 0.05, "no"),  # the interval begins beyond .55
        (0.58, 0.05, "unknown"),
        (0.36, 0.05, "no"),  # less likely than unseen texts gives away as much
        (0.54, None, "yes"),
        (0.57, None, "no"),
    ],
)
def test_a_membership_attack_has_to_fail_on_both_sides(auc, half, answer):
    after = metrics(FLOOR) | {"membership/loss_auc": entry(auc, "target", "membership", half=half, target=0.5)}
    judged = judge(after, reference=REFERENCE)
    assert answers(judged)[2] == answer
    assert ("less likely than unseen" in judged.findings[2].says) == (auc == 0.36)


def test_the_reference_sets_the_target_of_the_attack():
    reference = REFERENCE | {"membership/loss_auc": entry(0.7, "target", "membership", target=0.5)}
    assert answers(judge(metrics(FLOOR, auc=0.7), reference=reference))[2] == "yes"
    assert answers(judge(metrics(FLOOR, auc=0.5), reference=reference))[2] == "no"


def test_a_test_against_the_reference_overrules_the_attacks():
    judged = judge(metrics(FLOOR), reference=REFERENCE, tests={"loss_ks_p": 0.001, "truth_ratio_ks_p": None})
    assert answers(judged)[2] == "no"
    assert "a test tells it from the reference (loss, Kolmogorov-Smirnov, p = 0.001)" in judged.findings[2].says
    assert answers(judge(metrics(FLOOR), reference=REFERENCE, tests={"loss_ks_p": 0.4}))[2] == "yes"


def test_losses_alone_can_condemn_but_never_acquit():
    run = RunData(Path("run"), "run", {"status": "done", "settings": {}})
    good = {
        "forget": {"before": 0.1, "after": 2.0},
        "retain": {"before": 0.1, "after": 0.1},
        "holdout": {"before": 2.0, "after": 2.0},
    }
    bad = {
        "forget": {"before": 0.1, "after": 0.2},
        "retain": {"before": 0.1, "after": 1.1},
        "holdout": {"before": 2.0, "after": 3.0},
    }
    for losses, expected, tone in ((good, ["unknown"] * 3, "open"), (bad, ["no", "no", "unknown"], "bad")):
        run.manifest["loss_nats_per_completion_token"] = losses
        judged = verdict(run)
        assert answers(judged) == expected
        assert judged.tone == tone


def test_an_unfinished_run_is_never_a_success():
    judged = judge(metrics(FLOOR), reference=REFERENCE, status="running")
    assert (judged.tone, judged.lead) == ("open", "Not finished")


def test_of_several_runs_the_worst_answer_stands():
    good, bad = judge(metrics(FLOOR), reference=REFERENCE), judge(metrics(FLOOR, 0.5), reference=REFERENCE)
    pooled = worst([good, bad, good])
    assert answers(pooled) == ["yes", "no", "yes"]
    assert pooled.tone == "bad"
    assert ", in 1 of 3 runs" in pooled.findings[1].says
    assert worst([good]) is good


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0.000"), (0.1234, "0.123"), (12.345, "12.35"), (1234.5, "1,234"), (1e-5, "1.00e-05"),
     (-0.5, "-0.500"), (2e6, "2.00e+06")],
)  # fmt: skip
def test_numbers_are_written_with_as_many_digits_as_say_something(value, text):
    assert number_text(value) == text
