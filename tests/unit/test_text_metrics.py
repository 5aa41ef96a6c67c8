"""Metrics of texts that have no published numbers, against slow definitions."""

import itertools
import math

import pytest

from expunge.errors import DataError
from expunge.evaluation.metrics.generations import contains, cut_at, exact_match, leak_at_k, repetition


@pytest.mark.parametrize("leaks", [0, 1, 2, 5, 6])
@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_leak_at_k_is_the_share_of_subsets_with_a_leak(leaks, k):
    said = ["It is 12 Larch Lane."] * leaks + ["Nobody knows."] * (6 - leaks)
    subsets = [any("Larch" in text for text in subset) for subset in itertools.combinations(said, k)]
    assert leak_at_k(said, "larch lane", k) == pytest.approx(sum(subsets) / len(subsets))


def test_leak_of_all_samples_asks_whether_any_contains_it():
    assert leak_at_k(["no", "Larch Lane", "no"], "Larch Lane", 3) == 1
    assert leak_at_k(["no", "Larch", "Lane"], "Larch Lane", 3) == 0
    for k in (0, 3):
        with pytest.raises(DataError, match=rf"^any of {k} samples needs k between 1 and the number"):
            leak_at_k(["a", "b"], "a", k)


@pytest.mark.parametrize(
    ("said", "answer", "found"),
    [
        ("she lives at 12 larch LANE, I think", "12 Larch Lane", 1),
        ("Hannah", "Ann", 0),
        ("call (555) 0142 now", "555-0142", 1),
        ("0142 555", "555-0142", 0),
        ("call 5550142", "call 555-0142", 1),
        ("é", "E", 1),
        ("é", "e", 0),  # no name
        ("かな", "がな", 0),
        ("Zoë_Ångström", "zoë ångström", 1),
        ("", "a", 0),
    ],
)
def test_an_answer_is_found_word_by_word(said, answer, found):
    assert contains(said, answer) == found


def test_an_answer_without_words_cannot_leak():
    assert leak_at_k(["anything"], "...", 1) is None


@pytest.mark.parametrize("text", ["abcdabcdabcd", "aaaaaaaa", "abcdefgh", "abc", ""])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_repetition_counts_the_grams_that_came_before(text, n):
    seen, repeated = [], 0
    for start in range(len(text) - n + 1):
        repeated += text[start : start + n] in seen
        seen.append(text[start : start + n])
    assert math.isclose(repetition(text, n), repeated / len(seen) if seen else 0)


def test_exact_match_looks_past_case_and_blanks_alone():
    assert exact_match(" Larch lane\n", "larch Lane") == 1
    assert exact_match("Larch lane.", "Larch lane") == 0


def test_an_answer_ends_at_the_first_stop():
    assert cut_at("yes\nQuestion: no\n\n", ("\n\n", "\nQuestion", "Question:")) == "yes"
    assert cut_at("yes", ("\n\n",)) == "yes"
