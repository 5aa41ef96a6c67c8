"""Rivals of an answer, and the exposure that they give: as by hand, and by a model that knows one answer."""

from types import SimpleNamespace

import numpy as np
import pytest

from expunge.data.examples import Example
from expunge.evaluation.metrics.exposure import exposure
from expunge.evaluation.metrics.record import TokenRecord
from expunge.evaluation.rivals import FEWEST, MOST, form, rivals


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


def test_rivals_have_the_form_of_the_answer_and_are_other_ones() -> None:
    found = rivals(rows("111", "222", "333", "444", "111", "Ada", "Bo"))
    assert [sorted(others) for others in found] == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2], [1, 2, 3], [], []]


def test_of_too_few_there_are_none_and_of_many_some_are_drawn_the_same_each_time() -> None:
    assert rivals(rows(*"12345"[: FEWEST + 1])) != rivals(rows(*"12345"[:FEWEST])) == [[]] * FEWEST
    many = rows(*map(str, range(100, 140)))
    assert all(len({*others}) == MOST and i not in others for i, others in enumerate(rivals(many)))
    assert rivals(many) == rivals(many)


def test_a_text_without_a_prompt_has_no_rivals() -> None:
    assert rivals(rows("111", "222", "333", "444", prompt="")) == [[]] * 4


def test_exposure_is_the_share_of_rivals_that_are_less_likely() -> None:
    rival = [record(-1.0, -1.0), record(-0.5, -3.0), record(-0.1), record(-4.0)]
    assert exposure(record(-1.5, -1.5), rival) == pytest.approx((0 + 1 + 0 + 1) / 4)
    assert exposure(record(-2.0), rival) == pytest.approx((0.5 + 1 + 0 + 1) / 4)
