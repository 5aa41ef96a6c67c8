"""Tables on the terminal: aligned, narrower than 100 columns, arrows for direction, plain text."""

import itertools

import pytest

from expunge.evaluation.tables import facts_lines, loss_table, metrics_table, semeval_table

WIDEST = 99


def entry(value, direction="lower", **more):
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 1234, "direction": direction, **more}


RESULTS = {
    "metrics": {
        "forget/rouge_l_recall": entry(0.25, reference=0.3, difference={"low": -0.06, "high": -0.01}),
        "retain/a_metric_with_a_name_that_is_far_too_long_for_any_table": entry(0.9, "higher", reference=0.8),
        "membership/loss_auc": entry(0.61, "target", target=0.5),
        "forget/extraction_strength/paraphrased": entry(0.2),
        "forget/rouge_l_recall/Task1": entry(0.3),
        "holdout/drift": {"value": float("nan"), "low": None, "high": None, "n": 0, "direction": None},
    },
    "reference": {"indistinguishable": {"loss_ks_p": 0.012}},
}
BEFORE = {"metrics": {"forget/rouge_l_recall": entry(0.99), "membership/loss_auc": entry(1.0, "target", target=0.5)}}


def column(lines: list[str], title: str) -> dict[str, str]:
    """Label -> what stands under a title that is set flush right."""
    end = lines[0].index(title) + len(title)
    return {line[:30].rstrip(): line[:end].split()[-1] for line in lines[1:] if not line.startswith("*")}


@pytest.mark.parametrize("before", [None, BEFORE])
def test_metrics_are_aligned_and_narrow(before):
    lines = metrics_table(RESULTS, before).splitlines()
    assert max(map(len, lines)) <= WIDEST
    values = column(lines, "after" if before else "value")
    assert values["forget rouge l recall ↓"] == "0.250"
    assert values["membership loss auc → 0.5"] == "0.610"
    assert "Task1" not in "\n".join(lines)
    assert next(line for line in lines if line.startswith("forget rouge")).endswith("0.300*")
    (long,) = [line for line in lines if line.startswith("retain a metric")]
    assert any(line.startswith("forget extraction strength paraphrased ↓ ") for line in lines)
    assert " ↑ " in long  # the arrow stays where a name is cut


def test_the_untouched_model_stands_on_the_left():
    lines = metrics_table(RESULTS, BEFORE).splitlines()
    assert column(lines, "before")["forget rouge l recall ↓"] == "0.990"
    assert column(lines, "before")["holdout drift"] == column(lines, "after")["holdout drift"] == "–"


def test_losses_say_where_they_are_meant_to_go():
    losses = {name: {"before": 0.1, "after": 12.5} for name in ("forget", "retain", "holdout")}
    lines = loss_table(losses, dict.fromkeys(losses, 4)).splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["forget", "↑"], ["retain", "↓"]]
    assert len({len(line) for line in lines}) == 1
    told = loss_table(losses, {"forget": 3, "retain": 4, "holdout": 1}).splitlines()
    assert told[2] == lines[2]
    assert told[4].startswith("  one digit: to half a nat, since exact losses of fewer than 4 texts")
    lines += told
    assert max(map(len, lines)) <= WIDEST


def test_unseen_facts_are_not_counted_from_a_mean_in_another_mixture():
    """Of 10 of task A none is said, of 10 of B 5; to forget are 90 of A and 10 of B: a mean of .05 is not 1 of 20."""
    metrics = {"forget/key_fact": entry(0.5, n=10), "holdout/key_fact": entry(0.05, n=20)}
    (line,) = facts_lines({"metrics": metrics})
    assert " ".join(line.split()) == "forget, key facts said: 5 of 10"


def test_official_numbers_side_by_side():
    def results(tasks, value):
        side = {task: {"regurgitation": value, "knowledge": None} for task in tasks}
        return {"forget": side, "retain": side, "task_aggregate": value, "mean_nll": {"member": value}}

    text = semeval_table({"before": results(["Task1"], 1.0), "after": results(["Task1", "Task" + "2" * 50], 0.5)})
    lines = text.splitlines()
    assert {len(line) for line in lines} == {66}
    assert lines[0].split() == ["before", "after"]
    assert lines[1].split() == ["forget", "regurgitation", "Task1", "↓", "1.000", "0.500"]
    assert next(line.split()[-2:] for line in lines if "Task2" in line) == ["–", "0.500"]


def test_nothing_steers_a_terminal():
    losses = loss_table({"forget": {"before": 1, "after": 2}}, {"forget": 4})
    text = "".join(itertools.chain(metrics_table(RESULTS, BEFORE), losses))
    assert "\x1b" not in text
