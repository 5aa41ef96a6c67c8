"""The verdict: every criterion at its border, and never a success that the numbers do not hold."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge.evaluation.estimate import ONE_TEXT
from expunge.evaluation.results import COMPARED
from expunge.evaluation.stats import auc_estimate, difference_estimate, ks_pvalue, mean_estimate
from expunge.report.answers import STATES
from expunge.report.groups import group_runs, read_columns
from expunge.report.judge import Verdict, verdict, worst, write_verdict
from expunge.report.run_data import RunData, read_run
from expunge.report.scores import read_scores
from expunge.report.write import scored_card
from expunge.utils.text import UNSEEN_TEXTS
from report_runs import write_run

TARGET = 0.3
SAID, TOLD, KEPT, SPEAKS = range(4)


def entry(value, direction="higher", family="memorization", *, half=0.01, n=50, **more):
    bounds = {"low": None, "high": None} if half is None else {"low": value - half, "high": value + half}
    return {"value": value, **bounds, "n": n, "direction": direction, "family": family, **more}


def metrics(forget=TARGET, retain=0.9, auc=0.5, drift=0.0, *, half=0.01, **more):
    return {
        "forget/rouge_l_recall": entry(forget, "lower", half=half),
        "retain/rouge_l_recall": entry(retain, half=half),
        "membership/loss_auc": entry(auc, "target", "membership", half=half, n=5000, target=0.5),
        "nonmember/document_nll": entry(1.0 + drift, "lower", "drift", half=half),
        "holdout/drift": entry(drift, "target", "drift", half=half, target=0.0),
        "forget/repetition": entry(0.02, "lower", "text", half=half),
        **more,
    }


BEFORE = metrics(1.0, auc=1.0)
RETRAINED = metrics()


def judge(
    after,
    before=BEFORE,
    reference=RETRAINED,
    *,
    tests=None,
    kind="retrained",
    status="done",
    steps=10,
    losses=None,
    settings=None,
    noted=(),
    evaluated=None,
    calibration=None,
    rows=None,
    beside=None,
    earlier=None,
    told=None,
    tested=None,
    theirs=None,
) -> Verdict:
    """The verdict on a run whose files hold these metrics."""
    roles = {"before": before, "after": after, "retrained": reference}
    results = {role: {"schema": 1, "benchmark": "x", "metrics": numbers} for role, numbers in roles.items() if numbers}
    results["after"] |= {"not_measured": list(noted), **(beside or {})}
    results["after"]["settings"] = evaluated or {}
    results["after"]["reference"] = {"model": "other", "kind": kind, "indistinguishable": tests or {}}
    results["after"]["reference"] |= {"rows": tested} if tested else {}
    if before:
        results["before"] |= earlier or {}
    if reference:
        results["retrained"] |= theirs or {}
    manifest = {
        "status": status,
        "steps": steps,
        "settings": settings or {},
        "loss_nats_per_completion_token": losses or {},
    }
    manifest |= ({"rows": rows} if rows else {}) | (told or {})
    scores = {role: read_scores(content) for role, content in results.items()}
    if kind == "origin":  # has no file of its own
        results.pop("retrained", None)
    return verdict(RunData(Path("run"), "run", manifest, calibration=calibration or {}, results=results, scores=scores))


def answers(judged: Verdict) -> list[str]:
    return [answer.answer for answer in judged.answers]


def test_four_good_answers_are_a_success():
    judged = judge(metrics())
    assert answers(judged) == ["no", "no", "yes", "yes"]
    assert judged.success
    assert judged.lead.startswith("Forgotten")
    assert "expunge merge" in judged.next[0]
    assert "0.300 for a model retrained without the texts" in judged.sentence


@pytest.mark.parametrize(
    ("changed", "question", "answer"),
    [
        ({"forget": 0.9}, SAID, "yes"),
        ({"auc": 0.9}, TOLD, "yes"),
        ({"retain": 0.5}, KEPT, "no"),
        ({"forget/repetition": entry(0.5, "lower", "text")}, SPEAKS, "no"),
    ],
)
def test_one_bad_answer_is_a_failure_and_says_what_to_do(changed, question, answer):
    judged = judge(metrics(**changed))
    assert answers(judged)[question] == answer
    assert [given.state for given in judged.answers].count("bad") == 1
    assert (judged.success, judged.tone) == (False, "bad")
    assert judged.next
    assert judged.lead.startswith("Not yet: ")


def test_what_can_be_guessed_is_said_to_count_where_nothing_says_how_much_that_is():
    said = {"forget/key_fact": entry(0.3, "lower", "text")}
    before = BEFORE | {"forget/key_fact": entry(0.9, "lower", "text")}
    (note,) = judge(metrics(**said), before).answers[SAID].notes
    assert note.startswith("What can be guessed from a question")
    asked = RETRAINED | {"forget/key_fact": entry(0.1, "lower", "text")}
    assert judge(metrics(**said), before, asked).answers[SAID].notes == ()
    assert judge(metrics(**said, forget=0.9), before).answers[SAID].notes == ()  # more than that is still said


@pytest.mark.parametrize(("auc", "too_far"), [(0.5, False), (0.1, True)])
@pytest.mark.parametrize(
    ("attack", "advice"),
    [
        ("lowercase", "train on them in lower case, too (--lowercase-share 0.33)"),
        ("recall", "train on them there (--context-tokens 24), and longer (--epochs)"),
    ],
)
def test_texts_that_are_known_elsewhere_are_no_reason_for_a_lower_scale(attack, advice, auc, too_far):
    """These attacks divide by the loss of the text in another writing or place: they fall where it is still known."""
    after = metrics(auc=auc)
    after[f"membership/{attack}_auc"] = after["membership/loss_auc"] | {"value": 0.1, "low": 0.05, "high": 0.15}
    judged = judge(after)
    assert judged.answers[TOLD].state == "bad"
    said = " ".join(judged.next)
    assert advice in said
    assert ("lower the adapter's scale" in said) == too_far
    assert "Train longer" not in said


@pytest.mark.parametrize(("most", "limit"), [(None, "--epochs"), (10, "--max-steps"), (20, "--epochs")])
def test_training_longer_names_the_limit_that_ended_the_run(most, limit):
    judged = judge(metrics(forget=0.9), settings={"max_steps": most})
    assert any(step.startswith(f"Train longer ({limit}) or at a higher --learning-rate") for step in judged.next)


@pytest.mark.parametrize(
    ("forget", "half", "answer"),
    [
        (TARGET + 0.06, 0.005, "no"),  # 10 % of the way of .7 is .07
        (TARGET + 0.06, 0.7, "unclear"),  # the interval reaches as far as the untouched model
        (TARGET + 0.08, 0.005, "yes"),
        (TARGET + 0.08, 0.02, "unclear"),  # the interval reaches within the criterion
        (TARGET + 0.06, None, "no"),  # without an interval the value decides
        (TARGET + 0.08, None, "yes"),
        (0.0, 0.0, "no"),  # less than the target is gone, too
    ],
)
def test_forgotten_means_at_most_a_tenth_of_the_way_to_the_target(forget, half, answer):
    assert answers(judge(metrics(forget, half=half)))[SAID] == answer


def test_targets_are_taken_in_their_order_and_named():
    """The retrained model's, the results' own, that of unseen texts, the origin's; not the mismatched floor."""
    key, name = "forget/exact_memorization", "exact_memorization"
    after = {key: entry(0.4, "lower")}
    after[f"{key}/mismatched"] = entry(0.3, None)
    places = [
        ("the model from before it saw the texts", {}, {key: entry(0.41, "lower")}, "origin"),
        ("texts that it has never seen", {f"holdout/{name}": entry(0.42, None)}, {key: entry(0.5, "lower")}, "origin"),
        ("texts that it has never seen", {f"holdout/{name}": entry(0.43, None)}, None, "retrained"),
        ("chance", {key: entry(0.4, "lower", target=0.44)}, None, "retrained"),
        ("a model retrained without the texts", {}, {key: entry(0.45, "lower")}, "retrained"),
    ]
    for at, (whose, more, reference, kind) in enumerate(places):
        after |= more
        judged = judge(after, {key: entry(1.0, "lower")}, reference, kind=kind)
        (number,) = [score for score in judged.answers[SAID].numbers if score.key == key]
        assert (number.target, number.target_from, number.state) == (round(0.41 + at / 100, 2), whose, "good")


def facts(said: float, n: int = 60, side: str = "forget", direction: str | None = "lower") -> dict:
    return {f"{side}/{name}": entry(said, direction, "text", half=0.05, n=n) for name in ("key_fact", "exact_match")}


@pytest.mark.parametrize(
    ("unseen", "counted", "answer"),
    [
        (0.5, None, "no"),  # older results do not tell those that can be guessed
        (0.5, {"said": 15, "texts": 30}, "unclear"),
        (0.5, {"said": 0, "texts": 0}, "no"),  # yes, no and the like, which can be guessed
        (0.5, {"said": 1, "texts": 4}, "no"),
    ],
)
def test_unseen_texts_that_are_said_are_no_target(unseen, counted, answer):
    after = facts(unseen + 0.03) | facts(unseen, 30, "holdout", None) | metrics()
    judged = judge(after, facts(1.0) | BEFORE, None, beside={"unseen_said": counted} if counted else {})
    assert judged.answers[SAID].answer == answer
    assert any("unseen texts are said word for word: has the model seen them?" in line for line in judged.warnings) == (
        answer == "unclear"
    )
    assert any("that have certainly not seen the texts" in line for line in judged.next) == (answer == "unclear")


@pytest.mark.parametrize(("facts_said", "doubted"), [(12, True), (6, False), (None, False)])
def test_unseen_texts_of_which_the_untouched_model_says_the_facts_are_no_target(facts_said, doubted):
    after = facts(0.4) | facts(0.4, 30, "holdout", None) | metrics()
    counted = {"said": 0, "texts": 30} | ({} if facts_said is None else {"facts": facts_said})
    judged = judge(after, facts(1.0) | BEFORE, None, earlier={"unseen_said": counted})
    assert judged.answers[SAID].answer == ("unclear" if doubted else "no")
    says = "The untouched model says the key facts of 12 of 30 unseen texts: has it seen them?"
    assert judged.warnings == ((says,) if doubted else ())
    late = judge(after, facts(1.0) | BEFORE, None, beside={"unseen_said": counted})
    assert late.warnings == (), "of the unlearned model words alone"


@pytest.mark.parametrize(
    ("theirs", "unseen", "auc", "told"),
    [
        (0.5, None, 0.5, ""),  # they may be guessed
        (0.5, 0.05, 0.5, "The reference itself says 30 of the 60 texts"),
        (0.5, 0.48, 0.5, ""),  # they can be guessed
        (0.05, None, 0.5, ""),
        (0.05, None, 0.9, "The reference itself finds a forgotten text more familiar than an unseen one in 90 of 100"),
        (0.05, None, 0.7, ""),
    ],
)
def test_a_reference_that_has_seen_the_texts_is_no_target(theirs, unseen, auc, told):
    side = {} if unseen is None else facts(unseen, 60, "holdout", None)
    after, reference = facts(theirs) | side | metrics(auc=auc), facts(theirs) | side | metrics(auc=auc)
    guessed = {"unseen_said": {"said": 0, "texts": 0}}
    judged = judge(after, facts(1.0) | BEFORE, reference, tests={"loss_ks_p": 0.5}, beside=guessed)
    assert answers(judged)[:2] == ["unclear" if told else "no"] * 2
    assert [line.startswith(told) for line in judged.warnings] == ([True] if told else [])


def test_a_number_without_a_sensible_target_is_shown_and_not_judged():
    after = {"forget/exact_memorization": entry(0.5, "lower")}
    judged = judge(after, {"forget/exact_memorization": entry(1.0, "lower")}, None)
    (number,) = judged.answers[SAID].numbers
    assert (number.state, number.target) == ("shown", None)
    assert answers(judged)[SAID] == "not measured"
    assert "--reference" in judged.answers[SAID].need
    more = {"forget/exact_match": entry(0.0, "lower", "text", half=0.03)}  # what is said word for word has the target 0
    judged = judge(after | more, {"forget/exact_match": entry(0.55, "lower", "text", n=20)}, None)
    assert answers(judged)[SAID] == "no"
    assert judged.answers[SAID].says.startswith("answers given word for word: 0 of 50 (0.550 before)")


def test_what_the_untouched_model_had_is_not_made_up():
    """With `--samples` after alone, a tenth of the way down from a value that nobody measured says nothing."""
    draws = {"forget/key_fact_at_8": entry(0.04, "lower", "text", n=100)}
    found = {score.key: score for score in judge(metrics(**draws)).answers[SAID].numbers}
    assert (found["forget/key_fact_at_8"].state, found["forget/key_fact_at_8"].limit) == ("good", "at most 0.050")
    draws = {"forget/key_fact_at_8": entry(0.1, "lower", "text", n=100)}
    assert answers(judge(metrics(**draws)))[SAID] == "yes"
    judged = judge({"forget/rouge_l_recall": entry(TARGET, "lower")}, {"retain/rouge_l_recall": entry(0.9)})
    (number,) = judged.answers[SAID].numbers
    assert (number.state, number.limit) == ("shown", "no value of the untouched model")
    assert judged.answers[SAID].need == "Score the model before and after: `expunge evaluate --run RUN`."


def test_a_metric_that_had_nothing_to_lose_does_not_count():
    more = {"forget/fluent_nonsense": entry(0.31, "lower")}
    judged = judge(metrics(**more), BEFORE | more, RETRAINED | {"forget/fluent_nonsense": entry(0.30, "lower")})
    assert answers(judged)[SAID] == "no"
    assert [number.state for number in judged.answers[SAID].numbers] == ["good", "shown"]


@pytest.mark.parametrize(("half", "answer"), [(0.09, "not measured"), (0.01, "yes")])
def test_what_was_as_well_known_as_unseen_texts_had_nothing_to_lose(half, answer):
    """Fifteen unseen texts, whose mean is .04 lower by chance: a forget set that was never known is not still said."""
    unseen = {"holdout/rouge_l_recall": entry(0.66, None, half=half)}
    losses = {"forget": {"before": 2.0, "after": 2.01}, "holdout": {"before": 2.05, "after": 2.05}}
    judged = judge(metrics(0.698, **unseen), metrics(0.703), None, losses=losses).answers[SAID]
    assert judged.answer == answer
    assert ("clearly above that of unseen texts" in judged.need) == (answer == "not measured")


@pytest.mark.parametrize(("after", "state"), [(0.25, "unclear"), (0.0, "shown")])
def test_facts_that_few_unseen_texts_could_have_said_by_chance_are_not_lost_sight_of(after, state):
    """5 of 20 facts said before and after, 0 of 10 of unseen texts: intervals that wide show nothing either way."""
    facts = {"forget/key_fact": entry(0.25, "lower", "text", half=0.19, n=20)}
    unseen = {"holdout/key_fact": entry(0.0, None, "text", half=0.17, n=10)}
    judged = judge(metrics(**unseen, **{"forget/key_fact": entry(after, "lower", "text", half=0.1, n=20)}),
                   BEFORE | facts, None)  # fmt: skip
    (number,) = (score for score in judged.answers[SAID].numbers if score.key == "forget/key_fact")
    assert number.state == state
    assert not (judged.success and state == "unclear")


@pytest.mark.parametrize(("texts", "state"), [(3, "unclear"), (30, "good")])
def test_a_test_that_can_never_reject_tells_nothing(texts, state):
    """Of three losses on either side the smallest possible p is .1."""
    rows = {key: score | {"n": texts} for key, score in metrics().items() if key.startswith("forget/")}
    judged = judge(metrics() | rows, tests={"forget_loss_ks_p": 1.0})
    (number,) = (score for score in judged.answers[TOLD].numbers if score.key == "forget_loss_ks_p")
    assert number.state == state


def test_a_rise_on_unseen_texts_that_may_be_none_is_unclear():
    assert answers(judge(metrics(drift=0.15, half=0.2), BEFORE, None))[KEPT] == "unclear"
    assert answers(judge(metrics(drift=0.15, half=0.01), BEFORE, None))[KEPT] == "no"


def test_who_was_asked_nothing_that_should_be_answered_may_decline_everything():
    declined = {"forget/refusal": entry(1.0, "higher", "text")}
    judged = judge(metrics(**declined), BEFORE | {"forget/refusal": entry(0.0, "higher", "text")})
    assert answers(judged)[SPEAKS] == "unclear"
    assert judged.answers[SPEAKS].says.endswith("but it was asked nothing that should be answered")
    assert judged.answers[SPEAKS].need.startswith("Give texts to keep that have prompts")
    asked = {"retain/refusal": entry(0.0, "lower", "text")}
    before = BEFORE | {"forget/refusal": entry(0.0, "higher", "text")} | asked
    answer = judge(metrics(**declined, **asked), before).answers[SPEAKS]
    assert (answer.answer, answer.notes) == ("yes", ())
    asked = {"retain_qa/knowledge_memorization": entry(0.5, "higher", "text")}
    assert judge(metrics(**asked)).answers[SPEAKS].notes == (), "as MUSE asks"
    answer = judge(metrics()).answers[SPEAKS]  # texts alone on all sides
    assert answer.answer == "yes"
    assert answer.notes[0].startswith("No prompt that should be answered was asked")


def said(share, n, low, direction="lower"):
    return entry(share, direction, "text", n=n) | {"low": low, "high": min(1.0, share + 0.2)}


@pytest.mark.parametrize(
    ("left", "low", "n", "guessed", "answer"),
    [
        (0.9, 0.6, 10, None, "yes"),
        (0.9, 0.4, 4, None, "no"),  # of so few rows no task is judged
        (0.3, 0.08, 10, None, "no"),  # may be within the tenth
        (0.3, None, 10, None, "no"),  # all rows about one document
        (0.8, 0.5, 10, 0.75, "no"),  # answers that others guess as often
    ],
)
def test_a_whole_task_that_is_left_is_not_hidden_by_the_others(left, low, n, guessed, answer):
    key, task = "forget/exact_match", "forget/exact_match/phones"
    before = BEFORE | {key: said(1.0, 200, 0.98), task: said(1.0, n, 0.7)}
    after = metrics(**{key: said(0.05, 200, 0.03), task: said(left, n, low)})
    unseen = {
        "holdout/exact_match": said(0.01, 40, 0.0, None),
        "holdout/exact_match/phones": said(guessed or 0, 8, 0.3, None),
    }
    judged = judge(after | unseen if guessed else after, before).answers[SAID]
    assert judged.answer == answer
    assert answer == "no" or judged.says.startswith("phones, answers given word for word: 9 of 10 (10 before)")


def test_of_twenty_tasks_that_are_guessed_as_often_as_unseen_texts_none_is_left():
    """Nor one that is guessed more often than the kinds of which there are unseen texts."""
    rng, found = np.random.default_rng(0), []
    names = [f"forget/key_fact/t{at}" for at in range(20)]
    before = BEFORE | {key: said(1.0, 5, 0.6) for key in names}

    def drawn(count: int, share: float, direction: str | None = "lower") -> dict[str, Any]:
        return mean_estimate(rng.random(count) < share).as_entry() | {"direction": direction, "family": "text"}

    for n in (0, 8):
        for _ in range(40):
            unseen = {"holdout/key_fact": drawn(20, 0.3, None)}
            unseen |= {key.replace("forget", "holdout"): drawn(n, 0.3, None) for key in names if n}
            judged = judge(metrics(**unseen, **{key: drawn(5, 0.3) for key in names}), before, None).answers[SAID]
            found.append(any(number.state == "bad" and number.key in names for number in judged.numbers))
    assert sum(found) <= 1
    after = metrics(**{names[0]: said(1.0, 9, 0.8), "holdout/key_fact": said(0.1, 20, 0.0, None)})
    alike = {f"forget/key_fact/{COMPARED}": said(0.1, 20, 0.0)}
    assert judge(after, before, None).answers[SAID].answer == "yes"
    assert judge(after | alike, before, None).answers[SAID].state == "unclear", "it is neither hidden nor condemned"


def test_kinds_without_unseen_texts_are_not_compared_with_those_of_others():
    """Documents are easier than questions: of these there are no unseen ones."""
    known = "forget/rouge_l_recall/kinds with unseen texts"
    unseen = {"holdout/rouge_l_recall": entry(0.6, None)}
    after = metrics(0.3, **unseen, **{known: entry(0.8, "lower")})
    judged = judge(after, BEFORE | {known: entry(1.0, "lower")}, None).answers[SAID]
    assert judged.answer == "yes"
    states = {number.key: (number.state, number.limit) for number in judged.numbers}
    assert states[known][0] == "bad"
    assert states["forget/rouge_l_recall"] == ("shown", "not judged: some are of kinds without unseen texts")
    assert judge(after, BEFORE, RETRAINED).answers[SAID].answer == "no", "a retrained model has all kinds"


def test_a_benchmark_takes_no_unseen_texts_beside_its_own():
    after = {key: score for key, score in metrics().items() if not key.startswith("membership")}
    need = judge(after, None, None, settings={"benchmark": "tofu"}).answers[TOLD].need
    assert "a retrained model to `evaluate` (--reference MODEL)" in need


def test_the_number_on_which_most_is_left_is_named():
    judged = judge(metrics(**{"forget/exact_match": entry(0.8, "lower", n=10)}), reference=None)
    assert judged.answers[SAID].says == "answers given word for word: 8 of 10"


def test_the_first_answer_begins_with_the_facts_that_are_said():
    facts = {"forget/key_fact": entry(0.02, "lower", "text", half=0.02)}
    earlier = {"forget/key_fact": entry(0.6, "lower", "text")}
    said = "key facts said: 1 of 50 (30 before)"
    assert judge(metrics(**facts), BEFORE | earlier).answers[SAID].says.startswith(said)
    still = judge(metrics(0.9, **facts), BEFORE | earlier).answers[SAID]
    assert still.answer == "yes"
    assert still.says.startswith(f"{said}; forget: ROUGE-L recall 0.900")


@pytest.mark.parametrize(
    ("retain", "drift", "half", "answer"),
    [
        (0.885, 0.0, 0.002, "yes"),  # 98.3 % of .9
        (0.875, 0.0, 0.002, "no"),  # 97.2 %
        (0.875, 0.0, 0.02, "unclear"),  # the interval reaches 99.4 %
        (0.90, 0.045, 0.001, "yes"),
        (0.90, 0.06, 0.001, "no"),  # unseen texts less likely by 6 %: damage
        (0.90, -0.06, 0.001, "yes"),  # they became likelier, as they are for a model that never saw the forgotten ones
        (0.95, 0.0, 0.001, "yes"),
    ],
)
def test_kept_means_98_percent_of_every_score_and_5_of_drift(retain, drift, half, answer):
    assert answers(judge(metrics(retain=retain, drift=drift, half=half)))[KEPT] == answer


def test_the_criteria_are_those_of_the_run():
    assert answers(judge(metrics(retain=0.85), settings={"min_retain": 0.9}))[KEPT] == "yes"
    assert answers(judge(metrics(drift=0.06), settings={"max_drift": 0.1}))[KEPT] == "yes"
    assert answers(judge(metrics(auc=0.7), reference=None, settings={"target_auc": 0.7}))[TOLD] == "no"
    assert judge(metrics(), settings={"min_retain": 0.9}).as_dict()["criteria"]["min_retain"] == 0.9


def test_one_damaged_score_among_many_is_damage():
    more = {f"utility/task{i}": entry(0.6, family="utility") for i in range(20)}
    judged = judge(metrics(**more | {"utility/task7": entry(0.4, family="utility")}), BEFORE | more)
    assert answers(judged)[KEPT] == "no"
    assert "task7 0.400 (0.600 before); 1 of 22 numbers is bad, 21 good" in judged.answers[KEPT].says
    assert judged.lead == "Not yet: the rest was damaged"


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ((0.3,), "0.300 (1.000 before, 0.300 for a model retrained without the texts)"),
        ((0.3, 0.3), "both numbers say so"),
        ((0.3, 0.3, 0.3), "all 3 numbers say so"),
        ((0.9, 0.9), "both numbers say so"),
        ((0.375, 0.375), "both numbers are unclear"),
        ((0.375, 0.375, 0.375), "all 3 numbers are unclear"),
        ((0.9, 0.9, 0.3), "2 of 3 numbers are bad, 1 good"),
        ((0.375, 0.3), "1 of 2 numbers is unclear, 1 good"),
        ((0.9, 0.375, 0.375, 0.3), "1 of 4 numbers is bad, 2 unclear, 1 good"),
    ],
)
def test_an_answer_says_how_many_numbers_are_what(values, says):
    after, before, reference = (
        {f"forget/metric{i}": entry(value, "lower") for i, value in enumerate(series)}
        for series in (values, [1.0] * len(values), [TARGET] * len(values))
    )
    assert judge(after, before, reference).answers[SAID].says.endswith(says)


@pytest.mark.parametrize(("value", "answer"), [(0.25, "no"), (0.545, "yes")])
def test_a_task_is_judged_by_its_change_from_the_untouched_model(value, answer):
    """`evaluate --tasks` runs it on both models in one go; results_before.json has no such number."""
    task = {
        "all/mmlu_acc": entry(value, family="utility", n=1000, half=0.005),
        "all/mmlu_acc_change": entry(value - 0.55, family="utility", n=1000, half=0.005),
    }
    judged = judge(metrics(**task))
    assert answers(judged)[KEPT] == answer
    (found,) = [number for number in judged.answers[KEPT].numbers if number.key.startswith("all/")]
    assert found.before == pytest.approx(0.55)
    general = "General ability, such as MMLU (--tasks)."
    assert general not in judged.not_measured
    elsewhere = BEFORE | {"all/mmlu_acc": entry(0.9, family="utility", n=100, half=0.005)}  # on other rows
    assert answers(judge(metrics(**task), elsewhere))[KEPT] == answer
    del task["all/mmlu_acc_change"]
    judged = judge(metrics(**task))
    assert {number.key: number.state for number in judged.answers[KEPT].numbers}["all/mmlu_acc"] == "shown"
    assert general in judged.not_measured


def test_rows_that_were_trained_on_are_said_to_be_that():
    assert any("trained on" in note for note in judge(metrics()).answers[KEPT].notes)
    assert judge(metrics()).lead == "Forgotten: the texts are gone, and the texts to keep are as they were"
    assert "others may have suffered more" in " ".join(str(judge(metrics())).split())
    apart = {"rows": {"forget": 50, "retain": 80, "test": 20}, "losses": {"test": {"before": 0.1, "after": 0.3}}}
    told = judge(metrics(), **apart).answers[KEPT].notes  # what the scores are not of, the run's losses are
    assert "The loss of the 20 that it did not train on went from 0.100 to 0.300." in told
    own_texts = judge(metrics(), rows={"forget": 50})  # texts to keep that the run was not given
    assert own_texts.lead.endswith("the rest is as it was")
    for more in ({"utility/mmlu": entry(0.6, family="utility")}, {"world_facts/probability": entry(0.6)}):
        judged = judge(metrics(**more), BEFORE | more)
        assert not judged.answers[KEPT].notes
        assert judged.lead == "Forgotten: the texts are gone, and the rest is as it was"


OWN = {
    "retain": "key:trained",
    "test": "key:apart",
    "kept": "key:all",
    "holdout": "key:unseen",
    "unsteered": "key:half",
}


def of_texts(given: dict[str, str], *, benchmark="custom", kept=0.9, **measured: str) -> Verdict:
    """The verdict on a run that was given these texts, of which those that are named were measured."""
    beside = {"benchmark": benchmark, "fingerprint": {"texts": measured}}
    apart = {"test/rouge_l_recall": entry(0.9)} if "test" in measured else {}
    after, before = metrics(retain=kept, **apart), BEFORE | apart
    return judge(after, before, beside=beside, told={"texts": given}, rows={"retain": 80, "test": 20})


@pytest.mark.parametrize(
    ("given", "measured", "answer", "trained", "others"),
    [
        (OWN, {"retain": "key:trained"}, "yes", True, ""),
        (OWN, {"retain": "key:all"}, "yes", True, ""),  # with --test, or --retain-test 0
        (OWN, {"retain": "key:apart"}, "yes", False, ""),
        (OWN, {"retain": "key:strange"}, "unclear", False, "."),
        (OWN, {"retain": "key:strange", "test": "key:stranger"}, "unclear", False, "."),
        (OWN, {"retain": "key:strange", "test": "key:apart"}, "yes", False, ", too."),
        (OWN, {"retain": "key:all", "test": "key:strange"}, "yes", False, ", too."),
        ({}, {"retain": "key:strange"}, "yes", True, ""),  # as before there were hashes
        ({"forget": "key:one"}, {"retain": "key:strange"}, "yes", True, ""),
        (OWN, {}, "yes", True, ""),
        (OWN, {"retain": "other key:strange"}, "yes", True, ""),
    ],
)
def test_texts_to_keep_that_the_run_was_never_given_show_little(given, measured, answer, trained, others):
    judged = of_texts(given, **measured)
    told = judged.answers[KEPT]
    assert told.answer == answer
    assert any("the run trained on" in note for note in told.notes) == trained
    assert [note for note in told.notes if "other texts to keep" in note] == (
        [f"Measured on other texts to keep than the run's own{others}"] if others else []
    )
    assert judged.success == (answer == "yes")
    assert ("without --retain" in told.need) == ("not the run's own" in told.says) == (answer == "unclear")


def test_what_other_texts_to_keep_have_lost_is_damage_and_a_benchmark_asks_in_its_own_words():
    assert of_texts(OWN, kept=0.5, retain="key:strange").answers[KEPT].answer == "no"
    assert of_texts(OWN, benchmark="tofu", retain="key:strange").success
    assert not of_texts(OWN, benchmark="lume", retain="key:strange").success


def test_unseen_texts_that_the_run_was_never_given_are_said():
    told = "Compared with other unseen texts than those that the run was given."
    for given, unseen, other in (
        (OWN, "key:unseen", False),
        (OWN, "key:half", False),
        (OWN, "key:strange", True),
        (OWN, "other key:strange", False),
        ({"forget": "key:one"}, "key:strange", False),
    ):
        judged = of_texts(given, holdout=unseen)
        assert (told in judged.answers[TOLD].notes) == other
        assert judged.success


@pytest.mark.parametrize(
    ("sets", "answer", "shown"),
    [
        ({"retain": (0.9, 5)}, "unclear", []),
        ({"retain": (0.2, 5)}, "no", []),
        ({"retain": (0.9, 50), "test": (0.9, 2)}, "yes", ["test"]),
        ({"retain": (0.9, 50), "test": (0.2, 2)}, "no", []),
        ({"retain": (0.9, 50), "test": (0.7, 7)}, "unclear", []),  # one or two of seven fewer
        ({"retain": (0.9, 50), "test": (0.8, 7)}, "yes", ["test"]),  # less than a whole text
        ({"retain": (0.9, 8), "test": (0.9, 2)}, "unclear", []),
        ({"retain": (0.9, 50), "test": (0.9, 40)}, "yes", ["retain"]),
        ({"retain": (0.2, 50), "test": (0.9, 40)}, "no", []),  # what was trained on to be kept is lost
        ({"retain": (0.9, 5), "world_facts": (0.9, 60)}, "yes", ["retain"]),
        ({"retain": (0.7, 3)}, "no", []),  # exact, as numbers of texts to keep are
    ],
)
def test_few_texts_to_keep_and_those_trained_on_can_show_a_loss_alone(sets, answer, shown):
    after = {
        f"{name}/rouge_l_recall": entry(value, n=n, half=0.25 if n == 7 else 0.01) for name, (value, n) in sets.items()
    }
    before = {key: entry(0.9, n=found["n"]) for key, found in after.items()}
    judged = judge(metrics() | after, BEFORE | before, None).answers[KEPT]
    assert judged.answer == answer
    assert [number.key.split("/")[0] for number in judged.numbers if "only a loss counts" in number.limit] == shown


@pytest.mark.parametrize(
    ("n", "value", "answer"), [(3, 0.25, "unclear"), (3, 0.125, "no"), (3, 0.5, "yes"), (50, 0.25, "no")]
)
def test_a_rounded_number_is_unclear_where_the_exact_one_may_lie_on_the_other_side(n, value, answer):
    """At most .28 may be left, and .25 stands for all numbers from .18 to .35."""
    rounded = {"reason": "rounded to a power of two: of fewer than 4 texts"} if n < 4 else {}
    after = {"forget/probability": entry(value, "lower", half=None, n=n, **rounded)}
    seen = {"holdout/probability": entry(0.2, half=None)}
    judged = judge(after | seen, {"forget/probability": entry(1.0, "lower", half=None, n=n)}, None)
    assert answers(judged)[SAID] == answer


def test_one_attack_at_several_shares_does_not_widen_what_chance_allows():
    sides = {"half": 0.03, "n": 60, "target": 0.5, "members": 30, "nonmembers": 30}
    names = ("loss", "zlib", "min_k_20", "min_k_plus_plus_20")
    few = {f"membership/{name}_auc": entry(0.5, "target", "membership", **sides) for name in names}
    many = few | {
        f"membership/{name}_{share}_auc": entry(0.5, "target", "membership", **sides)
        for name in ("min_k", "min_k_plus_plus")
        for share in (5, 10, 30, 40)
    }
    limits = [judge(metrics() | attacks).answers[TOLD].numbers[0].limit for attacks in (few, many)]
    assert limits[0] == limits[1]


def test_what_is_better_higher_on_forgotten_texts_too_says_nothing_of_what_is_kept():
    brevity = {f"{name}/brevity": entry(0.5, family="text") for name in ("forget", "test", "retain")}
    before = {name: score | {"value": 0.9} for name, score in brevity.items()}
    assert answers(judge(metrics() | brevity, BEFORE | before))[KEPT] == "yes"


@pytest.mark.parametrize(
    ("change", "half", "n", "tasks", "answer"),
    [
        (-0.06, 0.02, 24, 1, "no"),
        (-0.06, 0.02, 9, 1, "yes"),  # so few texts are lost by chance
        (-0.01, 0.005, 24, 1, "yes"),  # within the criterion
        (-0.06, 0.07, 24, 1, "yes"),  # may be none
        (-0.06, 0.055, 24, 1, "no"),
        (-0.06, 0.055, 24, 20, "yes"),  # the worst of twenty
        (-0.06, None, 24, 1, "yes"),  # nothing says how far it can be trusted
    ],
)
def test_a_task_that_was_lost_is_not_hidden_by_the_mean_over_all(change, half, n, tasks, answer):
    names = [f"retain/rouge_l_recall/Task{number}" for number in range(tasks)]
    before = BEFORE | {name: entry(0.9, n=n) for name in names}
    after = metrics() | {name: entry(0.9, n=n) for name in names} | {names[0]: entry(0.9 + change, n=n)}
    changes = {name: {"value": 0.0, "low": -0.01, "high": 0.01} for name in names}
    changes[names[0]] = {"value": change, "low": change - (half or 0), "high": change + (half or 0)}
    judged = judge(after, before, beside={"before": {} if half is None else changes})
    assert judged.answers[KEPT].answer == answer
    assert ("Task0" in judged.answers[KEPT].says) == (answer == "no")


def test_losses_of_unseen_texts_in_the_manifest_count_as_drift():
    judged = judge(metrics(), losses={"holdout": {"before": 2.0, "after": 2.3}})
    assert answers(judged)[KEPT] == "no"
    assert "moved by +15% (2.000 to 2.300)" in judged.answers[KEPT].says


def test_unseen_texts_of_another_half_are_no_drift():
    """Before: all of them; after: those that did not steer the run, which may be harder."""
    before = BEFORE | {"nonmember/document_nll": entry(1.0, "lower", "drift", n=100)}
    after = metrics() | {"nonmember/document_nll": entry(1.3, "lower", "drift", n=50)}
    assert answers(judge(after, before))[KEPT] == "yes"
    after["holdout/drift"] = entry(0.2, "target", "drift", target=0.0)  # of each text by itself
    assert "(1.100 to 1.300)" in judge(after, before).answers[KEPT].says
    del after["holdout/drift"]
    assert answers(judge(after, before))[KEPT] == "yes"
    before["nonmember/document_nll"] = entry(1.0, "lower", "drift", n=50)
    assert "(1.000 to 1.300)" in judge(after, before).answers[KEPT].says


@pytest.mark.parametrize(
    ("auc", "half", "n", "answer"),
    [
        (0.5, 0.09, 5000, "no"),
        (0.5, 0.5, 5000, "unclear"),  # centred, but it shows nothing
        (0.5, 0.4, 5000, "no"),
        (0.62, 0.05, 5000, "yes"),  # the interval begins beyond .55
        (0.58, 0.05, 5000, "unclear"),
        (0.36, 0.05, 5000, "yes"),  # less likely than unseen texts gives away as much
        (0.54, None, 5000, "no"),
        (0.57, None, 5000, "yes"),
        (0.57, None, 34, "no"),  # chance has a standard deviation of .1 on so few
    ],
)
def test_a_membership_attack_has_to_fail_on_both_sides(auc, half, n, answer):
    after = metrics() | {"membership/loss_auc": entry(auc, "target", "membership", half=half, n=n, target=0.5)}
    judged = judge(after)
    assert answers(judged)[TOLD] == answer
    assert any("less likely than unseen" in text for text in judged.next) == (auc == 0.36)
    familiar = "to the loss attack a forgotten text looks more familiar than an unseen one in"
    assert judged.answers[TOLD].says.startswith(f"{familiar} {100 * auc:.0f} of 100 pairs (100 before")


@pytest.mark.parametrize(
    ("sides", "answer"),
    [
        ({"members": 1, "nonmembers": 32}, "unclear"),  # chance has a standard deviation of .298
        ({"members": 31, "nonmembers": 2}, "unclear"),  # .213
        ({"members": 16, "nonmembers": 17}, "yes"),  # .102
        ({}, "yes"),  # results of before the sides were counted: half of the texts on either
    ],
)
def test_chance_on_few_texts_of_one_side_is_as_wide_as_it_is(sides, answer):
    after = metrics()
    after["membership/loss_auc"] = entry(0.7, "target", "membership", half=None, n=33, target=0.5, **sides)
    told = judge(after, reference=None).answers[TOLD]
    assert told.answer == answer
    assert (told.numbers[0].limit == "at least 0.202 and at most 0.798") == (sides.get("members") == 1)


@pytest.mark.parametrize(
    ("attacks", "auc", "n", "answer"),
    [
        (1, 0.63, 32, "unclear"),  # one standard deviation of 16 + 16 texts by chance is .104
        (6, 0.63, 32, "no"),  # the farthest of six is as often within 1.87 of them
        (6, 0.70, 32, "unclear"),
        (6, 0.57, 5000, "unclear"),  # many texts: the tolerance of .05 counts, whatever the attacks
    ],
)
def test_the_farthest_of_several_attacks_is_allowed_what_chance_gives_to_it(attacks, auc, n, answer):
    after = metrics()
    score = entry(0.5, "target", "membership", half=0.15, n=n, target=0.5)
    after |= {f"membership/{name}_auc": score for name in ("loss", "zlib", "a", "b", "c", "d")[:attacks]}
    after["membership/loss_auc"] = entry(auc, "target", "membership", half=0.15, n=n, target=0.5)
    assert answers(judge(after, reference=None))[TOLD] == answer


@pytest.mark.parametrize(("target", "texts"), [(0.5, 2), (0.6, 4)])
def test_texts_so_few_that_chance_alone_allows_anything_tell_nothing(target, texts):
    score = entry(1.0, "target", "membership", half=None, n=2 * texts, target=target, members=texts, nonmembers=texts)
    score |= {"low": 0.34, "high": 1.0}
    after = metrics() | {f"membership/{name}_auc": score for name in ("loss", "zlib", "a", "b", "c", "d")}
    assert answers(judge(after, reference=None, settings={"target_auc": target}))[TOLD] == "unclear"


@pytest.mark.parametrize(("half", "answer"), [(0.12, "no"), (0.22, "no"), (0.24, "unclear")])
def test_an_interval_must_not_reach_as_far_as_the_untouched_model_lay_on_either_side(half, answer):
    """Attacks that divide by the loss in another writing lie below their target where a text is known."""
    before, after, reference = (
        metrics() | {"membership/lowercase_auc": entry(value, "target", "membership", half=half, n=5000, target=0.5)}
        for value in (0.3, 0.54, 0.54)
    )
    assert answers(judge(after, before, reference))[TOLD] == answer


def test_the_retrained_model_sets_the_target_of_the_attack():
    reference = RETRAINED | {"membership/loss_auc": entry(0.7, "target", "membership", target=0.5)}
    assert answers(judge(metrics(auc=0.7), reference=reference))[TOLD] == "no"
    assert answers(judge(metrics(auc=0.5), reference=reference))[TOLD] == "yes"
    assert "50 by chance" in judge(metrics(auc=0.9), reference=None).answers[TOLD].says


@pytest.mark.parametrize(
    ("auc", "difference", "reference", "answer"),
    [
        (0.56, 0.07, 0.5, "no"),  # the two AUCs are as far apart as two models' are on these texts
        (0.62, 0.07, 0.5, "unclear"),
        (0.56, 0.02, 0.5, "unclear"),  # they rank the texts alike, and the tolerance counts
        (0.56, None, 0.5, "unclear"),
        (0.56, 0.07, 0.45, "unclear"),  # the difference from another model's number than the target
    ],
)
def test_two_models_on_the_same_texts_are_as_far_apart_as_their_paired_difference_says(
    auc, difference, reference, answer
):
    paired = {"reference": reference, "difference": {"value": auc - reference, "low": None, "high": None}}
    if difference is not None:
        paired["difference"] |= {
            "low": auc - reference - 1.96 * difference,
            "high": auc - reference + 1.96 * difference,
        }
    attack = entry(auc, "target", "membership", half=0.15, n=5000, target=0.5, **paired)
    assert answers(judge(metrics() | {"membership/loss_auc": attack}))[TOLD] == answer
    assert answers(judge(metrics() | {"membership/loss_auc": attack}, kind="origin"))[TOLD] == "unclear"


@pytest.mark.parametrize(
    ("value", "retrained", "unseen", "n", "answer"),
    [
        (0.55, 0.52, None, 200, "no"),
        (0.8, 0.52, None, 200, "yes"),
        (0.3, 0.52, None, 200, "yes"),  # less likely than others gives them away as well
        (0.8, 0.78, 0.5, 200, "no"),  # the question tells that much to anyone
        (0.8, None, 0.5, 200, "yes"),
        (0.8, None, 0.78, 200, "no"),
        (0.8, None, None, 200, "no"),  # nothing says how much a question tells
        (0.55, 0.52, None, 15, "unclear"),  # so few acquit nobody
    ],
)
def test_answers_that_can_be_picked_out_of_others_are_told(value, retrained, unseen, n, answer):
    after = metrics() | {"forget/exposure": entry(value, "lower", n=n, half=0.05)}
    after |= {} if unseen is None else {"holdout/exposure": entry(unseen, None, n=n, half=0.05)}
    reference = RETRAINED | ({} if retrained is None else {"forget/exposure": entry(retrained, "lower", n=n)})
    judged = judge(after, BEFORE | {"forget/exposure": entry(1.0, "lower", n=n)}, reference)
    assert answers(judged)[TOLD] == answer
    assert answers(judged)[SAID] == "no", "it is no count of what is said"
    if answer == "yes":
        share = f"{100 * value:.0f}"
        says = f"after its own question a forgotten answer is likelier than another one of its form in {share}"
        assert says in judged.answers[TOLD].says
    alone = {key: score for key, score in after.items() if not key.startswith("membership/")}
    assert answers(judge(alone, BEFORE, reference))[TOLD] == ("yes" if answer == "yes" else "not measured")


@pytest.mark.parametrize(
    ("value", "half", "unseen", "state"),
    [
        (0.62, None, 0.05, "unclear"),  # a single document, of which nothing says what chance allows
        (0.62, 0.05, None, "unclear"),
        (0.62, 0.05, 0.05, "bad"),
        (0.55, 0.05, 0.05, "good"),
    ],
)
def test_answers_of_a_single_document_are_not_told_from_others(value, half, unseen, state):
    after = metrics() | {"forget/exposure": entry(value, "lower", n=50, half=half)}
    after |= {"holdout/exposure": entry(0.5, None, n=50, half=unseen)}
    judged = judge(after, BEFORE | {"forget/exposure": entry(1.0, "lower", n=50)}, None)
    assert [number.state for number in judged.answers[TOLD].numbers if "exposure" in number.key] == [state]


@pytest.mark.parametrize(("n", "answer"), [(4, "unclear"), (50, "no")])
def test_answers_that_are_compared_with_those_of_few_unseen_texts_acquit_nobody(n, answer):
    after = metrics() | {"forget/exposure": entry(0.5, "lower", n=200, half=0.05)}
    after |= {"holdout/exposure": entry(0.5, None, n=n, half=0.3)}
    assert answers(judge(after, BEFORE | {"forget/exposure": entry(1.0, "lower", n=200)}, None))[TOLD] == answer


def test_answers_of_kinds_without_unseen_texts_are_not_compared_with_those_of_others():
    """All of one kind follow from their questions, in whatever model; of it there are no unseen texts."""
    after = metrics() | {"forget/exposure": entry(0.76, "lower", n=200, half=0.05)}
    after |= {f"forget/exposure/{COMPARED}": entry(0.53, "lower", n=100, half=0.05)}
    after |= {"holdout/exposure": entry(0.52, None, n=100, half=0.05)}
    judged = judge(after, BEFORE | {"forget/exposure": entry(1.0, "lower", n=200)}, None)
    assert judged.answers[TOLD].answer == "no"
    limits = [number.limit for number in judged.answers[TOLD].numbers if number.key == "forget/exposure"]
    assert limits == ["not judged: some are of kinds without unseen texts"]


def test_a_test_against_the_retrained_model_overrules_the_attacks():
    judged = judge(metrics(), tests={"loss_ks_p": 0.001, "truth_ratio_ks_p": None})
    assert answers(judged)[TOLD] == "yes"
    assert "a test tells it from a model retrained without the texts (loss, Kolmogorov" in judged.answers[TOLD].says
    assert answers(judge(metrics(), tests={"loss_ks_p": 0.4}))[TOLD] == "no"
    assert answers(judge(metrics(), tests={"loss_ks_p": 0.04}))[TOLD] == "yes"
    both = {"loss_ks_p": 0.04, "truth_ratio_ks_p": 0.5}
    assert answers(judge(metrics(), tests=both))[TOLD] == "no", "the significance is shared among the tests"


def test_a_test_alone_does_not_say_in_which_direction_to_go():
    """Kolmogorov-Smirnov sees that the losses differ, not whether they are too low."""
    told = judge(metrics(), tests={"loss_ks_p": 0.001}, settings={"benchmark": "semeval"}).next
    assert [step[:44] for step in told] == ["A test tells it from the retrained model, th"]
    both = judge(metrics(auc=0.9), tests={"loss_ks_p": 0.001}, settings={"benchmark": "semeval"}).next
    assert [step[:21] for step in both] == ["Train longer (--epoch"]


def test_a_test_against_the_model_from_before_is_shown_and_decides_nothing():
    """A retrained model is told from it, too: it was trained on the rest."""
    told = judge(metrics(), tests={"loss_ks_p": 0.001}, kind="origin").answers[TOLD]
    assert (told.answer, {number.state for number in told.numbers}) == ("no", {"good", "shown"})
    after = {key: score for key, score in metrics().items() if not key.startswith("membership")}
    told = judge(after, tests={"loss_ks_p": 0.001}, kind="origin").answers[TOLD]
    assert (told.answer, [number.state for number in told.numbers]) == ("not measured", ["shown"])


@pytest.mark.parametrize(
    ("key", "value", "before", "answer"),
    [
        ("forget/repetition", 0.11, 0.02, "yes"),
        ("forget/repetition", 0.14, 0.02, "no"),
        ("forget/fluency", 11.0, 5.0, "yes"),  # of what is said by one model alone, so there is no target
        ("retain/refusal", 0.3, 0.0, "no"),
        ("forget/refusal", 0.9, 0.0, "yes"),  # a refusal is what may be wanted of them
    ],
)
def test_speech_is_compared_with_what_it_was(key, value, before, answer):
    after, earlier = ({key: entry(rate, "lower", "text")} for rate in (value, before))
    same = {"retain/repetition": entry(0.01, "lower", "text"), "test/refusal": entry(0.01, "lower", "text")}
    assert answers(judge(after | same, earlier | same, None))[SPEAKS] == answer


@pytest.mark.parametrize(
    ("key", "after", "before", "other", "kind", "answer"),
    [
        ("retain/refusal", 0.3, 0.3, 0.0, "retrained", "yes"),  # as before
        ("retain/refusal", 0.3, 0.0, 0.3, "retrained", "yes"),  # as a retrained model
        ("retain/refusal", 0.3, 0.3, 0.0, "origin", "yes"),
        ("forget/repetition", 0.45, 0.0, 0.5, "origin", "no"),  # a base that repeats itself is no excuse
    ],
)
def test_speech_may_be_as_it_was_or_as_that_of_a_retrained_model(key, after, before, other, kind, answer):
    now, earlier, theirs = ({key: entry(value, "lower", "text")} for value in (after, before, other))
    judged = judge(metrics(**now), BEFORE | earlier, RETRAINED | theirs, kind=kind)
    assert answers(judged)[SPEAKS] == answer


def test_a_retrained_model_goes_before_the_one_from_before(tmp_path):
    run = write_run(tmp_path / "run")
    file = run / "results_after.json"
    content = json.loads(file.read_text())
    content["reference"] = {"model": "base", "kind": "origin", "indistinguishable": {}}
    for metric in content["metrics"].values():
        metric["reference"] = 0.123
    file.write_text(json.dumps(content))
    both = read_run(run)
    assert both.reference == "retrained"
    assert {score.value for score in both.scores["retrained"].values()} != {0.123}
    (run / "results_retrained.json").unlink()
    alone = read_run(run)
    assert alone.reference == "origin"
    assert {score.value for score in alone.scores["retrained"].values()} == {0.123}
    assert "| score | before | after | origin |" in scored_card(alone)
    assert "origin" in [column.title for column in read_columns(group_runs([alone]))]


@pytest.mark.parametrize(
    ("key", "advice"),
    [("retain/refusal", "It declines what it should answer"), ("forget/repetition", "It does not speak")],
)
def test_over_refusal_and_babble_have_their_own_mends(key, advice):
    after, earlier = ({key: entry(rate, "lower", "text")} for rate in (0.5, 0.0))
    steps = [step for step in judge(metrics(**after), BEFORE | earlier).next if step.startswith("It d")]
    assert [step.startswith(advice) for step in steps] == [True]


def test_losses_alone_can_condemn_but_never_acquit():
    good = {"forget": (0.1, 2.0), "retain": (0.1, 0.1), "holdout": (2.0, 2.0)}
    bad = {"forget": (0.1, 0.2), "retain": (0.1, 1.1), "holdout": (2.0, 3.0)}
    unknown = {"forget": (2.5, 2.4), "retain": (0.1, 0.1), "holdout": (2.0, 2.0)}
    unsaid = ["not measured"] * 4
    for losses, expected, tone in (
        (good, unsaid, "open"), (unknown, unsaid, "open"), (bad, ["yes", "not measured", "no"], "bad")
    ):  # fmt: skip
        pairs = {name: dict(zip(("before", "after"), pair, strict=True)) for name, pair in losses.items()}
        manifest = {"status": "done", "settings": {}, "loss_nats_per_completion_token": pairs}
        judged = verdict(RunData(Path("run"), "run", manifest))
        assert answers(judged)[: len(expected)] == expected
        assert judged.tone == tone
        assert judged.next[0].startswith("Score the model")


@pytest.mark.parametrize(
    ("texts", "kept"),
    [
        ({"test": 4}, ["test/loss", "holdout/loss"]),
        ({"test": 4, "holdout": 1}, ["test/loss"]),  # which condemns nobody by itself: it has no interval
        ({"test": 10, "holdout": 1}, ["test/loss"]),
        ({"test": 3}, ["retain/loss", "holdout/loss"]),
        ({"test": 3, "retain": 2}, ["holdout/loss"]),
        ({"test": 3, "retain": 2, "holdout": 1}, []),
    ],
)
def test_losses_of_few_texts_are_too_coarse_to_tell_what_is_kept(texts, kept):
    losses = {name: {"before": 3.0, "after": 3.5} for name in ("forget", "retain", "test", "holdout")}
    manifest = {"status": "done", "settings": {}, "loss_nats_per_completion_token": losses, "loss_texts": texts}
    answer = verdict(RunData(Path("run"), "run", manifest)).answers[KEPT]
    assert [number.key for number in answer.numbers] == kept
    assert answer.state == ("bad" if "holdout/loss" in kept or texts["test"] == 10 else "not measured")


def test_commands_for_a_terminal_name_the_run_and_are_never_broken():
    judged = judge({"utility/mmlu": entry(0.6, family="utility")}, None, None)
    assert "`expunge evaluate --run RUN`" in judged.next[0]
    path = "some body/runs-of-today/" + "x" * 80
    told = str(judged.at(path))
    assert f"`expunge evaluate --run '{path}'`" in told
    assert "RUN" not in told


def test_an_unfinished_run_is_never_a_success():
    judged = judge(metrics(), status="running")
    assert (judged.tone, judged.lead, judged.next[0][:19]) == ("open", "The run is not finished", "Finish the run run:")


def test_of_several_runs_the_worst_answer_stands():
    good, bad = judge(metrics()), judge(metrics(retain=0.5))
    pooled = worst([good, bad, good])
    assert answers(pooled) == ["no", "no", "no", "yes"]
    assert pooled.tone == "bad"
    assert pooled.answers[KEPT].says.endswith(", in 1 of 3 runs")
    assert worst([good]) is good
    assert STATES.index(pooled.answers[KEPT].state) == 0


def test_of_several_runs_the_head_says_what_the_answers_say():
    good, said = judge(metrics()), judge(metrics(forget=0.9))
    babbles = judge(metrics(**{"forget/repetition": entry(0.5, "lower", "text")}))
    pooled = worst([good, babbles, said])
    assert answers(pooled) == ["yes", "no", "yes", "no"]
    assert pooled.lead == "Not yet: the texts are still known and the model no longer speaks well"
    assert pooled.next == (*babbles.next, *said.next)
    assert not any("Hand over" in step for step in pooled.next)
    doubtful = ("forget/rouge_l_recall", "membership/loss_auc")
    wide = [judge(metrics() | {key: metrics(half=0.7)[key]}) for key in doubtful]
    assert worst(wide).lead == "Not shown yet: 2 of 4 questions are open"
    pooled = worst([good, said, judge(metrics(), status="running")])
    assert pooled.lead == "The run is not finished"
    assert pooled.next[0].startswith("Finish the run run:"), "the most urgent first"
    assert worst([good, good]).next == good.next


def test_what_is_missing_is_named_with_what_to_give_for_it(tmp_path):
    rows = {"forget": 60, "retain": 60}
    judged = write_verdict(write_run(tmp_path / "run", scored=False, manifest={"rows": rows}))
    assert answers(judged) == ["not measured"] * 4
    assert all(answer.need in judged.next for answer in judged.answers)
    assert "--holdout" in judged.answers[TOLD].need
    unseen = verdict(write_run(tmp_path / "unseen", scored=False))  # they were given, and only scores are missing
    assert "expunge evaluate" in unseen.answers[TOLD].need
    told = str(judged).splitlines()
    assert max(map(len, told)) <= 99
    assert sum(line.startswith("  not measured") for line in told) == 1  # what no run tells; the four say so themselves


@pytest.mark.parametrize("scored", [False, True])
@pytest.mark.parametrize(
    ("rows", "calibration", "settings", "given"),
    [
        ({}, {}, {}, False),
        ({"holdout": 20}, {}, {}, True),
        ({}, {"selection_hmac": ["a"]}, {}, True),
        ({}, {"selection_hmac": []}, {}, False),
        ({}, {}, {"benchmark": "semeval"}, True),  # its documents are no rows of the run
        ({}, {}, {"benchmark": "tofu"}, False),
    ],
)
def test_unseen_texts_are_asked_for_where_there_are_none(rows, calibration, settings, given, scored):
    manifest = {"status": "done", "steps": 10, "settings": settings, "rows": rows}
    after = {"schema": 1, "benchmark": "x", "metrics": metrics(auc=0.9)}
    results, scores = ({"after": after}, {"after": read_scores(after)}) if scored else ({}, {})
    judged = verdict(RunData(Path("run"), "run", manifest, results=results, scores=scores, calibration=calibration))
    assert judged.answers[TOLD].answer == ("yes" if scored else "not measured")
    steps = " ".join(judged.next)
    assert ("Give unseen texts" in steps or UNSEEN_TEXTS in steps) != given
    assert ("not yet as unlikely as unseen ones" in steps) == (given and scored)


def test_a_benchmark_without_its_unseen_documents_asks_for_such_texts():
    after = {key: score for key, score in metrics().items() if not key.startswith("membership")}
    assert "--holdout FILE" in judge(after, settings={"benchmark": "semeval"}).answers[TOLD].need


def test_scores_without_texts_to_keep_ask_for_the_texts_and_not_for_the_scores_again():
    after, before = ({key: score for key, score in side.items() if "retain" not in key} for side in (metrics(), BEFORE))
    judged = judge(after, before)
    assert judged.answers[KEPT].need == "Give texts to keep: `expunge evaluate --run RUN --retain FILE --overwrite`."
    assert not any(step.startswith("Score the model") for step in judged.next)
    assert judge(metrics(), before).answers[KEPT].need.startswith("Score the model")


def test_what_was_not_measured_is_named_once():
    noted = ("No unseen texts (--holdout).", "No general abilities (--tasks).", "No model (--reference).", "No leaks.")
    after = {key: score for key, score in metrics().items() if not key.startswith("membership")}
    told = judge(after, reference=None, noted=noted).not_measured
    assert [sum(word in text for text in told) for word in ("--holdout", "--tasks", "--reference", "No leaks.")] == [
        0,
        1,
        1,
        1,
    ]


def test_notes_of_the_results_are_called_notes():
    noted = "Membership is reported on the 12 and 16 texts that did not steer the adapter (of 24 and 32)."
    lines = str(judge(metrics(), reference=None, noted=[noted])).splitlines()
    notes = [line[16:].split(" ")[0] for line in lines if line.startswith("  note  ")]
    assert notes == ["Membership", "Chance", "Measured", "No"], "the results' own, then those of the answers"
    assert sum(line.startswith("  not measured  ") for line in lines) == 3
    assert not any(line.startswith("  not measured  Membership") for line in lines)


def test_the_file_holds_criteria_numbers_targets_and_what_is_missing(tmp_path):
    run = write_run(tmp_path / "run")
    judged = write_verdict(run)
    content = json.loads((run / "verdict.json").read_text())
    assert content == json.loads(json.dumps(judged.as_dict()))
    assert set(content) == {
        "schema", "success", "lead", "answers", "next", "criteria", "not_measured", "warnings",
    }  # fmt: skip
    number = next(score for score in content["answers"][SAID]["numbers"] if score["key"] == "forget/rouge_l_recall")
    assert number["target_from"] == "a model retrained without the texts"
    assert number["low"] < number["value"] < number["high"]
    assert (run / "verdict.json").stat().st_mode & 0o777 == 0o600


def test_attacks_that_were_left_out_may_tell() -> None:
    for left_out, answer in (([], "no"), (["zlib", "min_k"], "unclear")):
        told = judge(metrics(), evaluated={"attacks_left_out": left_out}).answers[TOLD]
        assert told.answer == answer
        assert ("but not all attacks were run" in told.says) == bool(left_out)
        assert told.need == ("Evaluate without --attacks: zlib, min_k were left out." if left_out else "")
    told = judge(metrics(auc=0.9), evaluated={"attacks_left_out": ["zlib"]}).answers[TOLD]
    assert told.answer == "yes"  # one that tells is enough


@pytest.mark.parametrize("count", [30, 100, 240, 1000])
def test_an_attack_that_told_nothing_before_is_no_doubt_where_it_tells_nothing_after(count: int) -> None:
    """Lower case changes nothing in scripts without case: an AUC of .5 before and after."""
    half = 1.96 * (1 / 6 / count) ** 0.5
    score = entry(0.5, "target", "membership", half=half, n=2 * count, target=0.5, members=count, nonmembers=count)
    extra = {f"membership/{name}_auc": score for name in ("lowercase", "zlib", "min_k_20")}
    told = judge(metrics() | extra, BEFORE | extra, reference=None).answers[TOLD]
    assert {number.state for number in told.numbers} == {"good"}


def test_a_score_of_the_rest_that_was_0_has_nothing_to_lose() -> None:
    extra = {"retain/exact_match": entry(0.0)}
    kept = judge(metrics() | extra, BEFORE | extra).answers[KEPT]
    assert kept.answer == "yes"
    assert [number.limit for number in kept.numbers if number.key == "retain/exact_match"] == [
        "nothing to lose: it was 0 before"
    ]


@pytest.mark.parametrize(
    ("stopped", "advice", "never"),
    [
        ("all criteria are met 2 times in a row, at step 96", "so that a longer one ends there", "Train longer"),
        ("nothing has become better since step 48", "Train longer (--patience)", "ends there"),
        ("all steps are done", "Train longer (--epochs)", "ends there"),
    ],
)
def test_more_steps_are_not_advised_where_they_would_change_nothing(stopped, advice, never):
    judged = judge(metrics(auc=0.9), reference=None, calibration={"stopped": stopped, "selection_hmac": ["x"]})
    assert any(advice in step for step in judged.next)
    assert not any(never in step for step in judged.next)


@pytest.mark.parametrize("reached", [True, False])
def test_a_run_that_missed_its_criteria_should_go_on_also_where_few_texts_leave_it_open(reached):
    calibration = {"stopped": "all steps are done", "selection_hmac": ["x"], "reached": reached}
    judged = judge(metrics(auc=0.8, half=0.3), reference=None, calibration=calibration)
    assert judged.answers[TOLD].state == "unclear"
    assert any("Train longer (--epochs)" in step for step in judged.next) == (not reached)


@pytest.mark.parametrize(("drift", "rank", "told"), [(0.2, 16, True), (0.2, 64, False), (0.0, 16, False)])
def test_a_wider_adapter_is_advised_where_unseen_texts_have_moved(drift, rank, told):
    judged = judge(metrics(drift=drift), settings={"lora_rank": rank})
    assert (judged.answers[KEPT].state == "bad") == bool(drift)
    assert any("--lora-rank 64" in step for step in judged.next) == told


@pytest.mark.parametrize(("name", "told"), [("test", True), ("retain", False)])
def test_texts_that_were_set_apart_can_be_trained_on(name, told):
    after = {f"{key}/probability": entry(0.5 if key == name else 0.9) for key in ("retain", "test")}
    before = {key: entry(0.9) for key in after}
    assert any("--retain-test 0" in step for step in judge(metrics() | after, BEFORE | before).next) == told


def test_texts_without_prompts_are_not_asked_to_be_scored_again():
    after = {key: found for key, found in metrics().items() if not key.endswith("repetition")}
    answer = judge(after, BEFORE).answers[SPEAKS]
    assert (answer.answer, answer.need.split(":")[0]) == (
        "not measured",
        "Give texts with prompts, or longer ones",
    )


# --- what data cannot show is unclear ------------------------------------------------------------


def persons(said: int, rows: int, count: int = 20, name: str = "exact_match") -> dict[str, Any]:
    """Counts of as many persons of so many rows, of whom the first has some that are said."""

    def count_of(hits: int, n: int) -> dict[str, Any]:
        score = mean_estimate([1.0] * hits + [0.0] * (n - hits)).as_entry()
        return score | {"direction": "lower", "family": "text"}

    found = {f"forget/{name}/p{at}": count_of(said * (at == 0), rows) for at in range(count)}
    return {f"forget/{name}": count_of(said, rows * count), **found}


KNOWN = {key: entry(1.0, "lower", "text", n=score["n"]) for key, score in persons(5, 5).items()}


@pytest.mark.parametrize(
    ("said", "unseen", "theirs", "state"),
    [
        (5, None, None, "unclear"),
        (3, None, None, "unclear"),
        (2, None, None, "good"),  # less than most
        (5, 0.0, None, "unclear"),
        (5, 0.6, None, "good"),  # that is often guessed
        (5, None, 0, "unclear"),
        (5, None, 5, "good"),  # a retrained model says them, too
    ],
)
def test_a_person_who_is_still_said_is_at_least_unclear(said, unseen, theirs, state):
    """5 of 5 rows have an interval from .39 on, which no count of persons leaves above the criterion."""
    after = metrics() | persons(said, 5)
    if unseen is not None:
        after["holdout/exact_match"] = mean_estimate(
            [1.0] * int(20 * unseen) + [0.0] * int(20 - 20 * unseen)
        ).as_entry()
    reference = RETRAINED | persons(theirs, 5) if theirs is not None else None
    answer = judge(after, BEFORE | KNOWN, reference).answers[SAID]
    assert {number.key: number.state for number in answer.numbers if number.state != "shown"}.get(
        "forget/exact_match/p0", "good"
    ) == state
    assert answer.state == state
    if state == "unclear":
        assert answer.says.startswith(f"p0, answers given word for word: {said} of 5 (5 before")
        assert answer.need.startswith("Most rows of a task, or a person, are still said")


@pytest.mark.parametrize(
    ("members", "nonmembers", "answer"),
    [(4, 4, "unclear"), (8, 8, "unclear"), (60, 4, "unclear"), (60, 9, "unclear"), (60, 10, "no"), (16, 16, "no")],
)
def test_attacks_on_few_texts_acquit_nobody(members, nonmembers, answer):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=members), rng.normal(size=nonmembers)
    scores = scores[0] - scores[0].mean(), scores[1] - scores[1].mean()
    attack = auc_estimate(*scores).as_entry() | {"direction": "target", "family": "membership", "target": 0.5}
    after = metrics() | {f"membership/{name}_auc": attack for name in ("loss", "zlib", "a", "b", "c", "d")}
    told = judge(after, reference=None).answers[TOLD]
    assert told.answer == answer
    assert told.need.startswith("An attack shows nothing where it is less exact than one on") == (answer == "unclear")


@pytest.mark.parametrize(("n", "answer"), [(1, "unclear"), (7, "unclear"), (8, "no"), (None, "no")])
def test_one_unseen_text_is_no_target(n, answer):
    unseen = {"holdout/rouge_l_recall": entry(0.82, None, half=None, n=n)}
    assert answers(judge(metrics(0.79, **unseen), BEFORE, None))[SAID] == answer
    nothing = {"holdout/key_fact": entry(0.0, None, half=None, n=1)}  # as many as nobody who knows nothing says
    fact = {"forget/key_fact": entry(0.0, "lower", "text", n=60)}
    before = {"forget/key_fact": entry(1.0, "lower", "text", n=60)}
    assert answers(judge(fact | nothing, before, None))[SAID] == "no"


def test_a_test_without_power_acquits_nobody():
    p = ks_pvalue([0.5, 0.6, 0.7, 3.0], [2.5, 2.6, 2.7, 2.9])
    assert 0.05 < p < 0.3
    for rows, answer in ((4, "unclear"), (24, "unclear"), (25, "no")):
        told = judge(metrics(), tests={"loss_ks_p": p}, tested={"loss_ks_p": rows}).answers[TOLD]
        assert told.answer == answer
        assert ("on fewer than 25 losses" in told.need) == (answer == "unclear")
        assert [number.n for number in told.numbers if number.key == "loss_ks_p"] == [rows]
        assert answers(judge(metrics(), tests={"loss_ks_p": 1e-4}, tested={"loss_ks_p": rows}))[TOLD] == "yes"


def test_criteria_that_a_run_has_loosened_are_no_forgetting():
    settings = {"target_auc": 0.8, "min_retain": 0.5, "max_drift": 1.0}
    judged = judge(metrics(retain=0.5, auc=0.77, drift=0.88), reference=None, settings=settings)
    assert "beyond a loss of 50%" in judged.answers[KEPT].rule
    assert "no more than 100%" in judged.answers[KEPT].rule
    assert answers(judged)[1:] == ["no", "yes", "yes"]
    judged = judge(metrics(retain=0.5, auc=0.77, drift=0.88), reference={"forget/rouge_l_recall": entry(TARGET)},
                   settings=settings)  # fmt: skip
    assert judged.lead == "All four answers are good within the run's own criteria"
    assert "80 by the run's own --target-auc" in judged.answers[TOLD].says
    assert not judged.answers[TOLD].notes
    told = [text.split(": ")[1] for text in judged.warnings if text.startswith("The run is judged by a criterion of")]
    assert told == [
        "--target-auc 0.8, which is 0.5 where nobody sets it.",
        "--min-retain 0.5, which is 0.98 where nobody sets it.",
        "--max-drift 1, which is 0.05 where nobody sets it.",
    ]
    assert worst([judge(metrics()), judged]).lead == judged.lead
    by_reference = judge(metrics(), settings={"target_auc": 0.47})
    assert (by_reference.lead[:9], by_reference.warnings) == ("Forgotten", ())
    strict = judge(metrics(), settings={"target_auc": 0.5, "min_retain": 0.99, "max_drift": 0.01})
    assert (strict.lead[:9], strict.warnings) == ("Forgotten", ())


@pytest.mark.parametrize(
    ("before", "after", "told", "doubted"),
    [
        (None, {"said": 0, "texts": 60}, [], False),
        ({"said": 30, "texts": 60}, {"said": 0, "texts": 60}, [], True),
        (None, {"said": 30, "texts": 60}, [], True),
        (None, None, ["their words tell one from the other: the unseen texts are of another kind"], True),
    ],
)
def test_what_speaks_against_unseen_texts_speaks_against_attacks_and_is_said(before, after, told, doubted):
    said, counted = ({"unseen_said": count} if count else {} for count in (before, after))
    judged = judge(metrics(), reference=None, earlier=said, beside=counted, told={"unseen_doubts": told})
    assert answers(judged)[TOLD] == ("unclear" if doubted else "no")
    assert len(judged.warnings) == doubted
    if told:
        assert judged.warnings == ("Their words tell one from the other: the unseen texts are of another kind",)
    with_reference = judge(metrics(), earlier=said, beside=counted, told={"unseen_doubts": told})
    assert answers(with_reference)[TOLD] == "no", "a retrained model's number is none of the unseen texts alone"


@pytest.mark.parametrize(
    ("kept", "others", "answer"),
    [
        (((1.0, -0.09, 38),), (), "yes"),
        (((1.0, -0.11, 37),), (), "unclear"),
        (((0.981, -0.12, 10),), (), "unclear"),
        (((0.981, -0.12, 10),), (("world_facts", 100),), "yes"),  # which show it
        (((0.5, -0.7, 10),), (("world_facts", 100),), "no"),
        (((1.0, -0.11, 37), (1.0, -0.01, 37)), (), "unclear"),  # probabilities that hardly move are no proof
    ],
)
def test_that_the_rest_is_kept_takes_an_interval_that_leaves_out_a_loss(kept, others, answer):
    after, changes = {}, {}
    for at, (value, low, n) in enumerate(kept):
        after[f"test/metric{at}"] = entry(value, n=n, half=0.12)
        changes[f"test/metric{at}"] = {"value": value - 1, "low": low, "high": 2 * (value - 1) - low, "n": n}
    for name, n in others:
        after[f"{name}/probability"] = entry(1.0, n=n)
        changes[f"{name}/probability"] = {"value": 0.0, "low": -0.01, "high": 0.01, "n": n}
    before = {key: entry(1.0) for key in after}
    drift = {key: score for key, score in metrics().items() if "retain" not in key}
    judged = judge(drift | after, BEFORE | before, None, beside={"before": changes})
    assert judged.answers[KEPT].answer == answer


@pytest.mark.parametrize(
    ("said", "paired", "answer"),
    [
        (0, True, "unclear"),  # 3 of 4 became none: .20 is the upper end of the change
        (0, False, "unclear"),  # nothing is known
        (-8, True, "no"),  # all of 8
        (25, True, "no"),  # half of 50
    ],
)
def test_a_loss_that_so_few_texts_cannot_show_is_unclear(said, paired, answer):
    first = [1.0, 1.0, 1.0, 0.0] if not said else [1.0] * 2 * said if said > 0 else [1.0] * 8
    last = [0.0] * len(first) if said <= 0 else [1.0] * said + [0.0] * said
    now = mean_estimate(last).as_entry() | {"direction": "higher", "family": "text"}
    now |= {} if paired else {"low": None, "high": None}
    before = now | mean_estimate(first).as_entry()
    change = difference_estimate(np.array(first), np.array(last))
    changes = {"test/exact_match": {**change.ends(), "n": len(first)}} if paired else {}
    after = metrics() | {"test/exact_match": now}
    judged = judge(after, BEFORE | {"test/exact_match": before}, None, beside={"before": changes})
    (number,) = [score for score in judged.answers[KEPT].numbers if score.key == "test/exact_match"]
    assert judged.answers[KEPT].answer == answer
    assert judged.answers[KEPT].says.endswith("; what is bad is of 8 texts only") == (len(first) == 8)
    assert number.limit.endswith("that can be chance") == (answer == "unclear")


@pytest.mark.parametrize(
    ("sets", "answer"),
    [
        ({"retain": [(0.015, -0.003, 1000)]}, "yes"),  # nothing moved, and little was said by heart
        ({"retain": [(0.104, -0.09, 48), (0.9, 0.0, 48)], "test": [(0.083, -0.3, 12), (0.9, 0.0, 12)]}, "yes"),
        ({"retain": [(1.0, -0.122, 90)]}, "yes"),  # 30 persons: as with one row lost
        ({"retain": [(1.0, -0.28, 37)]}, "unclear"),
        ({"retain": [(1.0, None, 38)]}, "yes"),
        ({"retain": [(1.0, None, 10)]}, "unclear"),
        ({"retain": [(1.0, -0.11, 32)], "test": [(1.0, -0.34, 8)]}, "unclear"),
        ({"retain": [(1.0, -0.09, 38)], "test": [(1.0, -0.28, 10)]}, "yes"),
    ],
)
def test_what_did_not_move_is_kept_where_rows_are_enough(sets, answer):
    given = {f"{name}/metric{at}": found for name, all_of in sets.items() for at, found in enumerate(all_of)}
    after = {key: entry(value, n=n, half=None) for key, (value, _, n) in given.items()}
    changes = {key: {"value": 0.0, "low": low, "high": 0.0, "n": n} for key, (_, low, n) in given.items()}
    others = {key: found for key, found in metrics().items() if "retain" not in key}
    kept = judge(others | after, BEFORE | after, None, beside={"before": changes}).answers[KEPT]
    assert kept.answer == answer
    assert ("48 can where all are known and kept" in kept.need) == (answer == "unclear")


@pytest.mark.parametrize(("half", "answer"), [(0.05, "yes"), (0.12, "unclear")])
def test_unseen_texts_that_may_have_moved_far_are_unclear(half, answer):
    after = metrics() | {"holdout/drift": entry(0.0, "target", "drift", half=half, target=0.0)}
    assert answers(judge(after))[KEPT] == answer


@pytest.mark.parametrize("auc", [0.5, 0.66, 0.9])
def test_an_attack_on_one_document_says_neither(auc):
    after = metrics(auc=auc)
    after["membership/loss_auc"] |= {"low": None, "high": None, "members": 20, "nonmembers": 20, "reason": ONE_TEXT}
    told = judge(after, reference=None).answers[TOLD]
    assert told.answer == "unclear"
    assert "all of a side is one document" in told.need


@pytest.mark.parametrize(("n", "answer"), [(1, "unclear"), (9, "unclear"), (10, "yes")])
def test_one_prompt_that_is_answered_shows_no_speech(n, answer):
    refusals = {"forget/refusal": entry(0.0, "higher", "text"), "retain/refusal": entry(0.0, "lower", "text", n=n)}
    speaks = judge(metrics(**refusals), BEFORE | refusals, None).answers[SPEAKS]
    assert speaks.answer == answer
    told = f"but it was asked only {n} prompt{'s' * (n > 1)} that should be answered"
    assert speaks.says.endswith(told) == (answer == "unclear")
    few = refusals | {f"{name}/refusal": entry(0.0, "lower", "text", n=k) for name, k in (("retain", 9), ("test", 3))}
    assert answers(judge(metrics(**few), BEFORE | few, None))[SPEAKS] == "yes", "twelve prompts"
    few = refusals | {"retain/refusal/task": refusals["retain/refusal"]}
    assert answers(judge(metrics(**few), BEFORE | few, None))[SPEAKS] == answer, "of which each is counted once"
    declined = refusals | {"retain/refusal": entry(1.0, "lower", "text", n=n, half=0.2)}
    assert answers(judge(metrics(**declined), BEFORE | refusals, None))[SPEAKS] == "no"


def test_a_mean_over_draws_is_no_count_of_rows():
    draws = {"forget/leak_at_1": entry(3 / 8 / 60, "lower", "text", n=60)}
    (said,) = (number.says for number in judge(metrics(**draws)).answers[SAID].numbers if "leak" in number.key)
    assert said == "texts said in a single drawn answer, on average: 0.006"
    draws = {"forget/key_fact_at_8": entry(3 / 60, "lower", "text", n=60)}
    (said,) = (number.says for number in judge(metrics(**draws)).answers[SAID].numbers if "fact" in number.key)
    assert said == "key facts said in one of the answers that were drawn: 3 of 60"


def test_unseen_texts_that_are_said_are_no_count_of_the_texts_to_forget():
    """Three of 20 are said, and one of 10 unseen ones, which are no two of these."""
    after = {"forget/key_fact": entry(0.15, "lower", "text", n=20), "holdout/key_fact": entry(0.1, None, "text", n=10)}
    judged = judge(after, {"forget/key_fact": entry(0.75, "lower", "text", n=20)}, None)
    says = "key facts said: 3 of 20 (15 before, 10% of texts that it has never seen)"
    assert judged.answers[SAID].numbers[0].says == says


def test_that_no_test_was_run_against_the_retrained_model_is_said():
    told = "Whether a test tells it from the retrained model (--reference)."
    stand_in = ("No model retrained without the forget set was given (--reference): whether .. was not tested.",)
    assert told in judge(metrics(), noted=stand_in).not_measured
    assert told not in judge(metrics(), tests={"loss_ks_p": 0.5}).not_measured
    alone = judge(metrics(), reference=None).not_measured
    assert told not in alone
    assert any("would score (--reference)" in text for text in alone)


ANSWERED = {"forget/exact_match": (1.0, 0.0, "lower"), "retain/rouge_1_f1": (0.9, 0.9, "higher")}
ASKED = {"max_new_tokens": 256, "samples": 8, "temperature": 1.0, "prompt_format": "space"}


def asked(before: dict, retrained: dict | None = None, *, fresh: bool = False) -> Verdict:
    """The verdict on answers that were asked for with these settings before, and with `ASKED` after."""
    drawn = {"forget/leak_at_8": (1.0, 0.0, "lower")} if fresh else {}
    earlier, now = (
        {key: entry(found[at], found[2], "text", half=0.0) for key, found in (ANSWERED | drawn).items()}
        for at in (0, 1)
    )
    return judge(
        metrics(**now),
        BEFORE | earlier,
        RETRAINED | now if retrained else None,
        evaluated=ASKED,
        earlier={"settings": ASKED | before},
        theirs={"settings": ASKED | (retrained or {})},
    )


@pytest.mark.parametrize(
    ("before", "retrained", "drawn", "states"),
    [
        ({}, {}, True, ["good", "good", "good"]),
        ({"max_new_tokens": 4}, None, False, ["unclear", "unclear", "unclear"]),
        ({"temperature": 0.5}, None, False, ["good", "good", "good"]),  # nothing was drawn
        ({"temperature": 0.5}, None, True, ["unclear", "good", "good"]),
        ({"samples": 2}, None, True, ["unclear", "good", "good"]),
        ({"dtype": "bfloat16"}, None, True, ["good", "good", "good"]),
        ({}, {"max_new_tokens": 4}, False, ["unclear", "good", "unclear"]),  # what is kept is compared with before
    ],
)
def test_answers_that_were_not_asked_for_alike_cannot_be_compared(before, retrained, drawn, states):
    judged = asked(before, retrained, fresh=drawn)
    found = [judged.answers[at].state for at in (SAID, KEPT, SPEAKS)]
    assert found == states
    for at, state in zip((SAID, KEPT, SPEAKS), states, strict=True):
        assert ("with the same settings" in judged.answers[at].need) == (state == "unclear")


@pytest.mark.parametrize(("limit", "answer"), [(256, "yes"), (4, "unclear")])
def test_a_task_is_not_judged_by_answers_of_a_retrained_model_that_were_not_asked_for_alike(limit, answer):
    def said(*shares: float) -> dict[str, Any]:
        names = ("", "/few", "/others")
        return {
            f"forget/exact_match{name}": entry(share, "lower", "text", half=0.0, n=n)
            for name, share, n in zip(names, shares, (50, 10, 40), strict=True)
        }

    theirs = RETRAINED | said(0.2, 0.2, 0.2)
    settings = {"evaluated": ASKED, "earlier": {"settings": ASKED}}
    other = {"theirs": {"settings": ASKED | {"max_new_tokens": limit}}}
    judged = judge(metrics(**said(0.2, 0.9, 0.02)), BEFORE | said(1.0, 1.0, 1.0), theirs, **settings, **other)
    assert judged.answers[SAID].answer == answer


def test_what_is_said_now_is_said_whatever_was_asked_before():
    now = {"forget/exact_match": entry(0.9, "lower", "text")}
    for before in (0.0, 1.0):  # four tokens held nothing
        earlier = {"forget/exact_match": entry(before, "lower", "text")}
        settings = {"earlier": {"settings": {"max_new_tokens": 4}}, "evaluated": {"max_new_tokens": 256}}
        assert judge(metrics(**now), BEFORE | earlier, None, **settings).answers[SAID].answer == "yes"


@pytest.mark.parametrize(
    ("stopped", "before", "earlier", "answer"),
    [
        (0, 1.0, 0, "no"),
        (5, 1.0, 0, "no"),  # as few as may be said
        (6, 1.0, 0, "unclear"),
        (50, 1.0, 0, "unclear"),
        (50, 0.0, 50, "unclear"),  # so were the untouched model's, so that it seems to have had nothing to lose
        (50, 0.0, 0, "no"),  # which it had not
        (0, 0.0, 50, "no"),
    ],
)
def test_answers_that_were_stopped_before_what_is_looked_for_acquit_nobody(stopped, before, earlier, answer):
    def count(value: float, short: int) -> dict[str, Any]:
        return {"forget/exact_match": entry(value, "lower", "text", half=None) | ({"stopped": short} if short else {})}

    judged = judge(metrics(**count(0.0, stopped)), BEFORE | count(before, earlier))
    assert judged.answers[SAID].answer == answer
    assert ("larger --max-new-tokens" in " ".join(judged.next)) == (answer == "unclear")
    limits = [number.limit for number in judged.answers[SAID].numbers]
    assert any(f"stopped too early: {stopped} of 50 answers" in limit for limit in limits) == (answer == "unclear")


def test_that_fluency_is_not_judged_is_said_where_it_was_measured():
    fluent = {"forget/fluency": entry(11.0, "lower", "text")}
    for more, told in (({}, False), (fluent, True)):
        speaks = judge(metrics(**more)).answers[SPEAKS]
        assert speaks.answer == "yes"
        assert any(note.startswith("Fluency is shown and not judged") for note in speaks.notes) == told
