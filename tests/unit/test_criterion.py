"""The criterion of the comparison: ranks, distances and which runs are compared."""

import pytest

from experiments.arms import compared, retain_kept
from experiments.criterion import distances, mean_ranks, ranks

RAW = {
    "task_aggregate": 0.9, "exact_match": 0.1, "steps": 100, "unseen_nll": 3.0, "facts_nll": 2.0, "repetition": 0.2,
    "fluency": 1.5, "auc_loss": 0.6, "auc_zlib": 0.5, "auc_min_k": 0.5, "auc_min_k_plus_plus": 0.5,
}  # fmt: skip


def test_equal_costs_share_the_mean_of_their_places():
    assert ranks({"a": 0.3, "b": 0.1, "c": 0.3, "d": 0.5}) == {"a": 2.5, "b": 1, "c": 2.5, "d": 4}


def test_distances_are_from_the_mean_of_the_retrained_models_and_changes_from_before():
    found = distances(RAW, RAW | {"unseen_nll": 2.5, "facts_nll": 2.5}, [RAW | {"auc_loss": 0.4}, RAW])
    assert found["auc_loss"] == pytest.approx(0.1)
    assert found["drift"] == pytest.approx(0.2)
    assert found["facts"] == pytest.approx(0.2)
    assert found["task_aggregate"] == 0.9


def test_groups_weigh_the_same_however_many_columns_they_have():
    good, bad = distances(RAW, RAW, [RAW]), distances(RAW | {"task_aggregate": 0.5}, RAW, [RAW | {"auc_loss": 0.5}])
    runs = {("good", "s", 0): good, ("bad", "s", 0): bad}
    found = mean_ranks(runs)  # first by task aggregate and one of four membership columns, tied on all others
    assert found["good"] == pytest.approx((1 + (1 + 1.5 * 3) / 4 + 5 * 1.5) / 7)
    assert found["good"] + found["bad"] == pytest.approx(3)


def test_a_group_that_is_not_measured_on_a_subject_is_left_out_there():
    row = {name: value for name, value in distances(RAW, RAW, [RAW]).items() if name != "facts"}
    assert mean_ranks({("a", "s", 0): row, ("b", "s", 0): row | {"steps": 1.0}}) == {
        "a": pytest.approx((5 * 1.5 + 2) / 6),
        "b": pytest.approx((5 * 1.5 + 1) / 6),
    }


def test_arms_are_compared_where_all_have_run_and_the_swept_subject_has_no_say():
    lines = [
        {"subject": place, "arm": arm, "seed": 0, **RAW}
        for place in ("demo", "olmo")
        for arm in ("before", "retrained")
    ]
    lines += [{"subject": "demo", "arm": arm, "seed": 0, **RAW} for arm in ("A", "C")]
    lines += [{"subject": "olmo", "arm": arm, "seed": seed, **RAW} for arm, seed in (("A", 0), ("C", 0), ("C", 1))]
    lines += [{"subject": "olmo", "arm": "C", "seed": 0, "learning_rate": 1.0, **RAW, "steps": 1}]
    found = compared(lines[:-1], {})
    assert set(found) == {("A", "olmo", 0), ("C", "olmo", 0)}
    chosen = {"C": {"learning_rate": 1.0}}
    assert compared(lines, chosen)["C", "olmo", 0]["steps"] == 1


def test_the_retain_term_that_has_kept_least_is_a_share_of_its_value_before() -> None:
    before = [0.0, 0.0, 0.5, 0.2, 0.0]
    assert retain_kept([0.9, 0.9, 0.45, 0.4, 0.3], before) == {"retain_kept": pytest.approx(0.9)}
    assert retain_kept([0.9, 0.9, 0.45, 0.4], []) == {}
