"""Target NLLs on numbers, without a model: what is expected of each token, and which token takes which unseen NLL.

The slow functions say the same as docs/targets.md in loops over all places.
"""

import math
import random
from collections.abc import Sequence
from statistics import fmean
from types import SimpleNamespace

import numpy as np
import pytest

from expunge.data.surprise import NGrams
from expunge.data.tokenize import TokenizedExample
from expunge.train.targets import UnseenTokens, at_most_surprise, of_their_form, unseen_nlls

Texts = Sequence[Sequence[int]]


def made_up(count: int, seed: int, vocabulary: int = 7) -> list[list[int]]:
    """Texts of few different tokens, so that some stand in the same places and some nowhere else."""
    chance = random.Random(seed)
    return [[chance.randrange(vocabulary) for _ in range(chance.randrange(1, 15))] for _ in range(count)]


def rows_of(texts: Texts) -> list[TokenizedExample]:
    return [TokenizedExample(str(at), list(ids), 1) for at, ids in enumerate(texts)]


def slow_expected(ids: Sequence[int], at: int, texts: Texts, nlls: Sequence[Sequence[float]], apart: int) -> float:
    """What is expected of a token by the places of unseen texts but that `apart`: longer contexts first, each drawn
    towards the shorter one, which counts as half a place.
    """
    again = ids[at] in ids[:at]
    places = [
        (number, place)
        for number, text in enumerate(texts)
        for place in range(1, len(text))
        if (text[place] in text[:place]) == again
    ]
    kinds = [texts[number][place] for number, place in places]
    once = [nlls[number][place] for number, place in places if kinds.count(texts[number][place]) == 1]
    found = fmean(once) if once else fmean(value for row in nlls for value in row[1:])
    for length in range(1, min(4, at + 1) + 1):
        wanted = list(ids[at + 1 - length : at + 1])
        same = [
            nlls[number][place]
            for number, place in places
            if number != apart and place + 1 >= length and texts[number][place + 1 - length : place + 1] == wanted
        ]
        if same:
            found = (sum(same) + found / 2) / (len(same) + 1 / 2)
    return found


@pytest.mark.parametrize("seed", range(4))
def test_what_is_expected_of_a_token_is_that_of_the_places_alike(seed: int) -> None:
    texts, asked = made_up(6, seed), made_up(5, 10 + seed, vocabulary=9)
    chance = random.Random(seed)
    nlls = [[0.0, *(chance.expovariate(0.5) for _ in text[1:])] for text in texts]
    tokens = UnseenTokens(rows_of(texts), nlls)
    found = [*map(tokens.expected, rows_of(asked)), *tokens.expected_by_the_others()]
    for ids, expected, apart in zip([*asked, *texts], found, [*[-1] * len(asked), *range(len(texts))], strict=True):
        assert expected[0] == 0
        assert expected[1:] == pytest.approx([slow_expected(ids, at, texts, nlls, apart) for at in range(1, len(ids))])


def slow_probability(ids: Sequence[int], at: int, texts: Texts, length: int, vocabulary: int) -> float:
    """Witten and Bell 1991: p of a token after the `length - 1` before it, or as many as there are."""
    if length == 1:
        tokens = [token for text in texts for token in text[1:]]
        kinds = max(1, len(set(tokens)))
        return (tokens.count(ids[at]) + kinds / vocabulary) / (len(tokens) + kinds)
    shorter = slow_probability(ids, at, texts, length - 1, vocabulary)
    start = at + 1 - length
    follow = [
        text[place] for text in texts for place in range(length - 1, len(text))
        if start >= 0 and list(text[place + 1 - length : place]) == list(ids[start:at])
    ]  # fmt: skip
    kinds = len(set(follow))
    return (follow.count(ids[at]) + kinds * shorter) / (len(follow) + kinds) if follow else shorter


@pytest.mark.parametrize("seed", range(4))
def test_surprise_is_that_of_witten_and_bell(seed: int) -> None:
    texts, asked = made_up(8, seed), made_up(5, 20 + seed, vocabulary=9)
    ngrams = NGrams([np.array(text) for text in texts], 9, order=4)
    for ids in [*asked, *texts]:
        wanted = [-math.log(slow_probability(ids, at, texts, 4, 9)) for at in range(1, len(ids))]
        assert ngrams.surprise(np.array(ids)).tolist() == pytest.approx(wanted)


def test_a_token_is_expected_to_be_as_unlikely_as_in_unseen_texts() -> None:
    unseen = [TokenizedExample("u", [1, 2, 3, 4], 1), TokenizedExample("v", [1, 2, 3, 5], 1)]
    nlls = [[0.0, 1.0, 0.2, 6.0], [0.0, 1.0, 0.2, 8.0]]
    tokens = UnseenTokens(unseen, nlls)
    known, mixed, new = (
        tokens.expected(TokenizedExample("a", ids, 1)) for ids in ([1, 2, 3, 4], [9, 3, 9, 4], [9, 8, 7])
    )
    assert known[0] == 0
    assert known[2] < mixed[1] < 4, "the words of a template are likely, less so elsewhere"
    assert new[1:] == [7.0, 7.0], "what is never seen is as unlikely as what is seen once"
    assert known[3] == pytest.approx(6.0, abs=1.0)


def test_a_name_that_is_said_again_is_compared_with_names_that_are_said_again() -> None:
    unseen = [TokenizedExample("u", [1, 2, 3, 2, 4], 1), TokenizedExample("v", [1, 5, 3, 5, 4], 1)]
    nlls = [[0.0, 6.0, 1.0, 0.1, 1.0], [0.0, 6.0, 1.0, 0.1, 1.0]]
    expected = UnseenTokens(unseen, nlls).expected(TokenizedExample("a", [1, 9, 3, 9, 4], 1))
    assert expected[1] == pytest.approx(6.0), "a new name"
    assert expected[3] == pytest.approx(0.1), "the same name again can be read off"


def test_unseen_texts_are_judged_by_the_others() -> None:
    unseen = [TokenizedExample(str(at), ids, 1) for at, ids in enumerate(([1, 2, 3], [1, 2, 4], [5, 4]))]

    def guesses(nll: float) -> list[list[float]]:
        return UnseenTokens(unseen, [[0.0, 1.0, 9.0], [0.0, 3.0, nll], [0.0, 6.0]]).expected_by_the_others()

    low, high = guesses(0.1), guesses(8.0)
    assert low[1] == pytest.approx(high[1]), "its own NLL tells nothing of what is expected of a token"
    assert low[2][1] < high[2][1], "that of the same token in another text does"


def test_tokens_of_a_kind_take_the_nlls_of_its_unseen_tokens() -> None:
    unseen = [TokenizedExample("u", [1, 2, 3], 2, group="a"), TokenizedExample("v", [1, 2, 3], 2, group="b")]
    nlls = [[0.0, 1.0, 8.0], [0.0, 3.0, 0.5]]
    rows = [TokenizedExample("x", [1, 2, 3, 4], 1, group="a"), TokenizedExample("y", [1, 2, 3], 2, group="b")]
    level = [[0.0, 2.0, 1.0, 9.0], [0.0, 7.0, 7.0]]
    found = unseen_nlls(rows, level, level, unseen, nlls, nlls)
    assert found[0] == [0.0, 8.0, 8.0, 8.0], "completions of a are as unlikely as the one that was never seen"
    assert found[1] == [0.0, 3.0, 0.5]


@pytest.mark.parametrize(
    ("expected", "before", "found"),
    [
        ((4.0, 1.0, 3.0, 2.0), (0.1, 0.1, 0.1, 0.1), (7.0, 0.1, 5.0, 0.2)),
        ((1.0, 1.0, 1.0, 1.0), (0.4, 0.1, 0.3, 0.2), (7.0, 0.1, 5.0, 0.2)),
        ((4.0, 1.0, 3.0, 2.0), (0.1, 0.2, 0.4, 0.3), (0.2, 0.1, 7.0, 5.0)),
    ],
    ids=["by what is expected", "by what was hard to learn", "by both"],
)
def test_the_hardest_tokens_take_the_highest_nlls(
    expected: tuple[float, ...], before: tuple[float, ...], found: tuple[float, ...]
) -> None:
    rows = [TokenizedExample(str(at), [1, 2], 1) for at in range(4)]
    nlls = [[0.0, value] for value in (0.2, 5.0, 0.1, 7.0)]
    sides = ([[0.0, value] for value in side] for side in (expected, before))
    assert unseen_nlls(rows, *sides, rows, nlls, nlls) == [[0.0, value] for value in found]


def test_a_kind_without_unseen_texts_takes_the_nlls_of_tokens_of_which_as_much_is_expected() -> None:
    unseen = [TokenizedExample("u", [1, 2, 3, 4, 5], 1, group="story")]
    among, nlls = [[0.0, 1.0, 1.0, 4.0, 8.0]], [[0.0, 0.5, 1.5, 3.0, 9.0]]
    rows = [TokenizedExample("x", [1, 2, 3, 4, 5, 6], 1, group="record")]
    expected = [[0.0, 1.0, 0.2, 1.0, 5.0, 20.0]]
    assert unseen_nlls(rows, expected, expected, unseen, among, nlls)[0] == [0.0, 0.5, 0.5, 1.5, 9.0, 9.0]


def test_what_the_texts_to_keep_say_of_a_token_makes_it_likelier() -> None:
    kept = [TokenizedExample("k", [1, 2, 3, 4, token], 1) for token in range(10, 20)]
    rows = [TokenizedExample("x", [1, 2, 3, 4, 30], 1)]
    found = at_most_surprise(rows, [[0.0, 6.0, 6.0, 6.0, 6.0]], kept)
    assert all(nll < 0.3 for nll in found[0][2:4]), "the words of their template"
    assert 2.0 < found[0][4] <= 6.0, "but not what differs in each of them"
    assert at_most_surprise(rows, [[0.0, 6.0, 6.0, 6.0, 6.0]], []) == [[0.0, 6.0, 6.0, 6.0, 6.0]]


@pytest.mark.parametrize(
    ("others", "name_nlls"),
    [(4, [0.0, 1.0, 1.0, 1.0]), (3, [0.0, 1.0, 3.0, 3.0])],
    ids=["by the names alone", "by all answers, since the names are too few"],
)
def test_answers_of_a_form_that_unseen_ones_have_are_as_hard_as_those(others: int, name_nlls: list[float]) -> None:
    """By the mean over all answers of its task a number would be likelier than other numbers are, and picked out, and a
    name less likely than other names.
    """
    forget, found = dealt_out(names=[3, 2, 1, 1][:others], numbers=4)
    assert [row.group for row in forget] == ["qa\0009 9", "qa"], "no form of names is known"
    assert found == [[0.0, 3.0, 3.0], name_nlls]


def test_short_answers_are_no_measure_of_a_long_one() -> None:
    assert dealt_out(names=[2, 1, 1, 1], numbers=4, length=5)[1][1] == [0.0] + [1.0] * 5, "as many tokens as it has"
    assert dealt_out(names=[1, 1, 1, 1], numbers=4, length=5)[1][1] == [0.0, 1.0, 1.0, 3.0, 3.0, 3.0], "all answers"


def dealt_out(names: list[int], numbers: int, length: int = 3) -> tuple[list[TokenizedExample], list[list[float]]]:
    """A number of two tokens and a name of `length`, with their target NLLs by unseen names of so many tokens, of a
    form each, which cost 1 nat a token, and by so many unseen numbers, which cost 3.
    """

    def answer(*tokens: int) -> TokenizedExample:
        return TokenizedExample("r", [90, *tokens], 1, group="qa")

    tokenizer = SimpleNamespace(decode=lambda ids, **_: "7 7" if ids[0] < 50 else " ".join(["word"] * (ids[0] - 49)))
    unseen = [answer(*[50 + at] * length) for at, length in enumerate(names)]
    unseen += [answer(at, at + 1) for at in range(numbers)]
    costs = [1.0] * len(names) + [3.0] * numbers
    nlls = [[0.0] + [cost] * (len(row) - 1) for row, cost in zip(unseen, costs, strict=True)]
    forget, of_kinds = of_their_form([answer(1, 2), answer(*[61] * length)], unseen, tokenizer)
    known = [(row, nlls[at], nlls[at]) for at, row in of_kinds]
    flat = [[0.0] * len(row) for row in forget]
    return forget, unseen_nlls(forget, flat, flat, *zip(*known, strict=True))
