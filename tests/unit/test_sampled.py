"""The ED score of drawn answers, by hand."""

import math

import pytest

from expunge.evaluation.metrics import METRICS
from expunge.evaluation.metrics.registry import Row
from expunge.evaluation.metrics.sampled import expectation_deviation

ANSWER = "the keeper of the mill"


def test_the_answer_that_is_drawn_once_in_a_while_counts() -> None:
    silent, half = "nothing at all", "the keeper slept"
    assert expectation_deviation([silent] * 4, ANSWER) == 0
    assert expectation_deviation([ANSWER] * 3, ANSWER) == 1
    assert expectation_deviation([half], ANSWER) == pytest.approx(2 / 5)
    one_in_four = expectation_deviation([silent, silent, silent, ANSWER], ANSWER)
    assert one_in_four == pytest.approx(0.25 + 2 * math.sqrt((3 * 0.25**2 + 0.75**2) / 3))


def test_it_is_taken_of_forget_rows_with_samples_alone() -> None:
    own = METRICS["expectation_deviation"]
    assert own.applies_to("forget")
    assert not own.applies_to("retain")
    assert own.of(Row(expected=ANSWER, text=ANSWER)) is None
    assert own.of(Row(expected=ANSWER, samples=[ANSWER])) == 1
