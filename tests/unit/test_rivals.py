"""Rivals of an answer, and the exposure that they give: as by hand, and by a model that knows one answer."""

from types import SimpleNamespace

import numpy as np
import pytest

from expunge.data.examples import Example
from expunge.data.kinds import form
from expunge.evaluation.metrics.exposure import exposure
from expunge.evaluation.metrics.record import TokenRecord
from expunge.evaluation.rivals import FEWEST, MOST, rivals


def rows(*answers: str, prompt: str = "q", task: str = ""):
    examples = [Example(f"{task}{i}", prompt, answer, task=task) for i, answer in enumerate(answers)]
    return SimpleNamespace(examples=examples)


def record(*logps: float) -> TokenRecord:
    values = np.array(logps)
    return TokenRecord("r", values, values > -0.1, values, values)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("440-555-0155", "212-555-0199", True),
        ("440-555-0155", "440 555 0155", False),
        ("Ada Lovelace", "Émile Zola", True),
        ("Ada", "Ada Lovelace", False),
        ("ada.l99@x.org", "bo.m12@y.net", True),
        ("7 May 1990", "12 May 1990", False),
    ],
)
def test_a_form_has_all_digits_and_all_words_alike(one: str, other: str, same: bool) -> None:
    assert (form(one) == form(other)) == same


def answers(found: list[list[Example]]) -> list[list[str]]:
    return [sorted(rival.completion for rival in others) for others in found]


def test_rivals_have_the_form_of_the_answer_and_are_other_ones() -> None:
    found = rivals(rows("111", "222", "333", "444", "111", "Ada", "Bo"))
    assert answers(found)[:2] == [["222", "333", "444"], ["111", "333", "444"]]
    assert answers(found)[4:] == [["222", "333", "444"], [], []]
    assert {rival.prompt for rival in found[0]} == {"q"}


def test_of_too_few_there_are_none_and_of_many_some_are_drawn_the_same_each_time() -> None:
    assert all(rivals(rows(*"12345"[: FEWEST + 1])))
    assert rivals(rows(*"12345"[:FEWEST])) == [[]] * FEWEST
    many = [*map(str, range(100, 140))]
    found = answers(rivals(rows(*many)))
    assert all(len({*others}) == MOST and answer not in others for answer, others in zip(many, found, strict=True))
    assert found == answers(rivals(rows(*many)))


def test_a_text_without_a_prompt_has_no_rivals() -> None:
    assert rivals(rows("111", "222", "333", "444", prompt="")) == [[]] * 4


def test_exposure_is_the_share_of_rivals_that_are_less_likely() -> None:
    rival = [record(-1.0, -1.0), record(-0.5, -3.0), record(-0.1), record(-4.0)]
    assert exposure(record(-1.5, -1.5), rival) == pytest.approx((0 + 1 + 0 + 1) / 4)
    assert exposure(record(-2.0), rival) == pytest.approx((0.5 + 1 + 0 + 1) / 4)
