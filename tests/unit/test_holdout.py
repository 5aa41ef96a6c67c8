"""Which membership texts are looked at and which are reported: halves that are alike, hashes that tell nothing."""

import itertools
import math
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from expunge.data.examples import Example
from expunge.data.holdout import (
    documents,
    example_hashes,
    keyed_hashes,
    selection_half,
    split_off,
    unseen_texts,
    without_selection,
)
from expunge.data.surprise import MOST_KNOWN, NGrams, surprises
from expunge.errors import DataError
from tiny import tiny_tokenizer


def texts(start, count):
    return [
        Example(f"t{i}", "Where does it stand?", f"Number {i} stands in row {i % 7}.")
        for i in range(start, start + count)
    ]


def apart(start, count):
    """Texts of which no two are of one family."""
    return [
        Example(f"t{i}", "Number:", " ".join(str(100_000 + 1000 * i + k) for k in range(9)))
        for i in range(start, start + count)
    ]


def test_families_stay_on_one_side():
    twins = [replace(text, id=f"{text.id}-twin", completion=text.completion + " indeed") for text in apart(0, 20)]
    members = [*apart(0, 20), *twins]
    unseen = apart(100, 16)
    half = split_off(documents(members, unseen), unseen, [], tiny_tokenizer("bytelevel")).members
    assert len(half) == 20
    assert {text.id for text in half} == {
        name for text in half for name in (text.id.removesuffix("-twin"), text.id.removesuffix("-twin") + "-twin")
    }
    assert len(unseen_texts([*apart(100, 5), *twins[:3]], members[:20])) == 5
    assert not unseen_texts([Example("a", "", "abcd")], [Example("b", "ab", "cd")]), "white space makes no other text"


def test_a_notice_that_stands_in_every_page_makes_none_of_them_seen():
    """As the sites' words about scripts in MUSE's news: a piece of the forget set, and a tenth of 25 unseen pages."""
    notice = Example("n", "", " ".join(f"notice{at}" for at in range(30)))
    pages = [
        Example(f"p{page}", "", " ".join(f"{page}word{at}" for at in range(300)) + f" {notice.completion}")
        for page in range(4)
    ]
    assert unseen_texts(pages, [notice]) == pages
    assert unseen_texts(pages, [notice], held=0.0) == []
    words = pages[0].completion.split()
    pieces = [Example(f"w{at}", "", " ".join(words[at : at + 30])) for at in range(0, 300, 30)]
    assert unseen_texts(pages, [notice, *pieces]) == pages[1:], "in pieces or whole, it was trained on"


@pytest.mark.parametrize("length", [80, 800])
def test_a_text_that_holds_a_trained_one_whole_is_seen(length):
    trained = Example("f", "", " ".join(f"fact{at}" for at in range(20)))
    page = Example("p", "", " ".join(f"word{at}" for at in range(length)) + f" {trained.completion}")
    assert unseen_texts([page, *apart(0, 3)], [trained]) == apart(0, 3)


def test_pairs_are_those_of_witten_and_bell():
    """Against their formulas, on counts in dictionaries."""
    rng = random.Random(0)
    known = [[rng.randrange(20) // rng.randint(1, 5) for _ in range(30)] for _ in range(8)]
    single, pair = Counter(), Counter()
    for row in known:
        single.update(row[1:])
        pair.update(itertools.pairwise(row))

    def p(first, second):
        alone = (single[second] + len(single) / 50) / (single.total() + len(single))
        after = {b: count for (a, b), count in pair.items() if a == first}
        if not after:
            return alone
        return (after.get(second, 0) + len(after) * alone) / (sum(after.values()) + len(after))

    pairs = NGrams([np.array(row) for row in known], 50, order=2)
    asked = [rng.randrange(50) for _ in range(200)]
    expected = [-math.log(p(a, b)) for a, b in itertools.pairwise(asked)]
    assert pairs.surprise(np.array(asked)) == pytest.approx(expected)
    for first in (0, 49):  # seen and unseen
        every = [pairs.surprise(np.array([first, second]))[0] for second in range(50)]
        assert sum(math.exp(-surprise) for surprise in every) == pytest.approx(1)


def test_longer_n_grams_are_filled_up_with_shorter_ones():
    ngrams = NGrams([np.array([0, 1, 2, 1, 2]), np.array([0, 1, 3])], vocabulary=4, order=3)
    single = (3 + 3 * 0.25) / (6 + 3)  # 1 stands there three times after the first token, of three kinds among six
    assert ngrams.surprise(np.array([3, 1])) == pytest.approx([-math.log(single)]), "nothing ever follows 3"
    two = (2 + 3 * 0.25) / (6 + 3)
    after_one = (2 + 2 * two) / (3 + 2)  # 1 2 twice, of two kinds among three
    after_zero_one = (1 + 2 * after_one) / (2 + 2)
    assert ngrams.surprise(np.array([0, 1, 2]))[1] == pytest.approx(-math.log(after_zero_one))
    assert NGrams([], vocabulary=4, order=3).surprise(np.array([0, 1])) == pytest.approx([math.log(4)])


def test_a_text_is_less_surprising_the_more_of_it_is_known():
    tokenizer = tiny_tokenizer("bytelevel")
    known = texts(0, 40)
    strange = Example("s", "", "Zxq vwj kpf hbd gym, qvz: jkx!")
    mixed = Example("w", "", "row in stands 61 Number it stand does Where")
    (alike, odd, shuffled), none = surprises(tokenizer, known, [[*texts(60, 1), strange, mixed], []])
    assert alike < shuffled < odd
    assert none == []
    (level,) = surprises(tokenizer, [], [[known[0], strange]])  # nothing is known: all tokens are alike
    assert level[0] == level[1] > 0
    assert surprises(tokenizer, known, [[Example("e", "", "a")]])[0][0] >= 0


def test_of_very_many_known_texts_some_are_counted_whatever_their_order():
    tokenizer = tiny_tokenizer("bytelevel")
    known, asked = texts(0, MOST_KNOWN + 400), [texts(0, 20)]
    some = surprises(tokenizer, known, asked)
    assert surprises(tokenizer, known[::-1], asked) == some
    assert surprises(tokenizer, known[:MOST_KNOWN], asked) != some


def test_both_halves_are_as_surprising():
    rng = random.Random(1)
    hashes = example_hashes(texts(0, 60))
    difficulty = [rng.gauss(5, 2) for _ in hashes]
    half = selection_half(hashes, [""] * 60, difficulty, range(60))
    looked_at, reported = (
        sorted(d for d, chosen in zip(difficulty, half, strict=True) if chosen is side) for side in (True, False)
    )
    assert len(looked_at) == len(reported) == 30
    gaps = [b - a for a, b in zip(sorted(difficulty), sorted(difficulty)[1:], strict=False)]
    assert all(abs(a - b) <= max(gaps) for a, b in zip(looked_at, reported, strict=True))
    lower = sum(a < b for a, b in zip(looked_at, reported, strict=True))
    assert 8 <= lower <= 22  # which of two is looked at is a coin's toss


def test_halves_depend_on_the_texts_alone():
    names = [f"{i:02}" for i in range(21)] + ["03", "17"]
    difficulty = [int(name) // 4 for name in names]  # with ties
    difficulty[-1] = 0  # the same text in other white space
    family = [names.index(name) for name in names]
    kinds = [""] * len(names)
    chosen = {name for name, half in zip(names, selection_half(names, kinds, difficulty, family), strict=True) if half}
    assert len(chosen) == 10
    again = selection_half(names[::-1], kinds, difficulty[::-1], family[::-1])
    assert {name for name, half in zip(names[::-1], again, strict=True) if half} == chosen


def test_neither_half_gets_the_hardest_of_an_odd_number():
    hashes = example_hashes(texts(0, 2001))
    half = selection_half(hashes, [""] * 2001, list(range(2001)), range(2001))
    at = [number for number, chosen in enumerate(half) if chosen]
    assert len(at) == 1000
    for ends in ((0, 1), (1999, 2000)):
        assert len(set(ends) & set(at)) == 1


def test_what_is_split_off_is_half_of_each_side_and_reported_nowhere():
    members, unseen, known = apart(0, 20), apart(100, 33), texts(200, 10)
    halves = split_off(documents(members, unseen), unseen, known, tiny_tokenizer("bytelevel"))
    assert [len(half) for half in (halves.members, halves.nonmembers, halves.short, halves.others)] == [10, 16, 0, 0]
    hashes = halves.hashes
    assert sorted(example_hashes([*halves.members, *halves.nonmembers])) == hashes
    shuffled = documents(members[::-1], unseen[::-1])
    assert split_off(shuffled, unseen, known[::-1], tiny_tokenizer("bytelevel")).hashes == hashes
    left = without_selection([*members, *unseen], {"selection_hmac": keyed_hashes(hashes)})
    assert not set(example_hashes(left)) & set(hashes)
    assert len(left) == 10 + 17


@pytest.mark.parametrize(
    ("unseen", "what"),
    [
        (apart(100, 34), ""),
        ([Example(f"w{i}", "Number:", f"word {i} " * 9) for i in range(34)], "their words"),
        ([replace(text, completion=text.completion[:50]) for text in apart(100, 34)], "their lengths"),
    ],
)
def test_unseen_texts_of_another_kind_are_told_without_a_model(unseen, what):
    told: list[str] = []
    split_off(documents(apart(0, 29), unseen), unseen, apart(300, 20), tiny_tokenizer("bytelevel"), told.append)
    assert not told, "two people can differ as much"
    split_off(documents(apart(0, 30), unseen), unseen, apart(300, 20), tiny_tokenizer("bytelevel"), told.append)
    assert bool(told) == bool(what)
    assert all(f"without any model {what} tell" in line and "of 100 pairs" in line for line in told)


def test_half_of_the_short_unseen_texts_is_left_to_be_reported():
    """Of every kind, whatever the order; a near-duplicate of a document stays with it."""
    unseen, tokenizer = apart(100, 16), tiny_tokenizer("bytelevel")
    sides = documents(apart(0, 16), unseen)
    alone = split_off(sides, unseen, [], tokenizer, [].append)
    assert (alone.short, alone.others) == ([], [])
    short = [Example(f"{kind}{i}", f"{kind} {i}?", f"It is {i}.", kind) for kind in "ab" for i in range(4)]
    near = [replace(text, completion=" ".join(text.completion.split()[:7])) for text in unseen]
    halves = split_off(sides, [*unseen, *short, *near], [], tokenizer)
    assert (halves.members, halves.nonmembers) == (alone.members, alone.nonmembers)
    assert Counter(text.task for text in halves.short) == {"a": 2, "b": 2, "": 8}
    assert {text.id for text in halves.short if not text.task} == {text.id for text in halves.nonmembers}
    assert {*alone.hashes} | {*example_hashes(halves.short)} == {*halves.hashes}
    assert not {*example_hashes(halves.others)} & {*halves.hashes}
    again = split_off(sides, [*near, *unseen, *short[::-1]], [], tokenizer)
    assert {text.id for text in again.short} == {text.id for text in halves.short}
    assert sorted(text.id for text in (*halves.short, *halves.others)) == sorted(text.id for text in (*short, *near))


def test_texts_much_shorter_than_most_are_left_out_where_enough_are_left():
    short = [Example(f"s{i}", "", f"{i}.") for i in range(5)]
    found = documents([*texts(0, 16), *short], texts(100, 16))
    assert [side.texts for side in found] == [texts(0, 16), texts(100, 16)]
    again = [*texts(0, 15), texts(0, 1)[0], *short]  # fifteen different ones are too few
    assert [side.texts for side in documents(again, texts(100, 16))] == [again, texts(100, 16)]


def test_too_few_documents_are_refused():
    needed = "16 texts to forget are needed as well as 16 unseen ones, .*, and there are"
    with pytest.raises(DataError, match=f"{needed} 20 and 15"):
        documents(texts(0, 20), texts(100, 15))
    with pytest.raises(DataError, match=f"{needed} 1 and 32"):
        documents(texts(0, 1), texts(100, 32))


def test_near_duplicates_of_one_another_cannot_be_halved():
    shared = "A long sentence that all of these texts have in common, word for word, so that they are of one family. "
    alike = [Example(f"t{i}", "", f"{shared}{i}.") for i in range(40)]
    with pytest.raises(DataError, match=r"half of the unseen texts steers .*, and all 40 are near-duplicates"):
        documents(apart(0, 20), alike)


def test_halves_of_which_one_is_next_to_nothing_are_refused():
    shared = "A long sentence that all of these texts have in common, word for word, so that they are of one family. "
    alike = [Example(f"t{i}", "", f"{shared}{i}.") for i in range(18)]
    unseen = apart(100, 20)
    sides = documents([*alike, *apart(0, 2)], unseen)
    told = "1 texts would steer the run and 19 be reported on, of 20 on one side, since near-duplicates"
    with pytest.raises(DataError, match=told):
        split_off(sides, unseen, [], tiny_tokenizer("bytelevel"))


def test_keyed_hashes_tell_the_selection_from_all_others_and_say_nothing_without_the_key(tmp_path, monkeypatch):
    texts = [Example(f"t{i}", "Her number is", f"{5550000 + i}.") for i in range(2000)]
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "ours"))
    calibration = {"selection_hmac": keyed_hashes(example_hashes(texts[:60]))}
    assert without_selection(texts, calibration) == texts[60:]
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "theirs"))
    assert not set(keyed_hashes(example_hashes(texts[:60]))) & set(calibration["selection_hmac"])
    with pytest.raises(DataError, match=r"known under another key than .*theirs/expunge/key"):
        without_selection(texts, calibration)


def test_both_halves_hold_texts_of_every_kind() -> None:
    kinds = ["story"] * 2 + ["record"] * 4 + ["answer"] * 6
    hashes, surprise = [f"{at:04d}" for at in range(12)], [float(7 * at % 12) for at in range(12)]
    half = selection_half(hashes, kinds, surprise, range(12))
    for kind, count in (("story", 1), ("record", 2), ("answer", 3)):
        assert sum(chosen for chosen, name in zip(half, kinds, strict=True) if name == kind) == count
