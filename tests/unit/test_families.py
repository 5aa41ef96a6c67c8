"""Texts that are one text in other clothes are found, and texts of one template are not taken for one."""

from dataclasses import replace

import pytest

from expunge.data.examples import Example
from expunge.data.families import families as families_of
from expunge.data.families import normalized

LONG = "Marta Quillon was born in Port Ellery on the third of May and lived near the old mill all her life"


def families(texts):
    return families_of([Example("", "", text) for text in texts])


@pytest.mark.parametrize(
    "twin",
    [
        LONG.upper(),
        LONG + ".",
        LONG.replace(" ", "\u00a0"),
        "“" + LONG + "”",
        LONG.replace("life", "days"),
        "It is said that " + LONG,
        LONG.replace("fi", "ﬁ"),
    ],
)
def test_a_twin_is_of_the_family(twin):
    assert families([LONG, "Nothing like it stands here, or anywhere else that I know of today", twin]) == [0, 1, 0]


def test_texts_of_one_template_in_letters_without_spaces_are_apart():
    """Three letters are no three words."""
    people = [("สมชาย ใจดี", "เชียงใหม่", "ครู"), ("มาลี รักไทย", "ภูเก็ต", "ทนายความ"), ("วิชัย แสงทอง", "ขอนแก่น", "ช่างไม้")]
    rows = [
        Example(str(at), f"{name}เกิดที่ไหนและทำงานอะไร", f"{name}เกิดที่{town}และทำงานเป็น{work}")
        for at, (name, town, work) in enumerate(people)
    ]
    assert families_of(rows) == [0, 1, 2]
    assert families_of([rows[0], replace(rows[0], completion=rows[0].completion + "ครับ")]) == [0, 0]


def test_texts_of_one_template_are_apart():
    names = [("Ines Oduya", "Saltmarsh", "1974"), ("Tobias Wren", "Larch Hill", "1988"), ("Ada Finch", "Moor", "1990")]
    texts = [
        f"{name} lives in {place}. Her friends call her in the year {year} by phone." for name, place, year in names
    ]
    assert families(texts) == [0, 1, 2]


def test_short_texts_must_be_the_same():
    assert families(["call 555-0142", "Call 555-0142!", "call 555-0143"]) == [0, 0, 2]


def test_scripts_without_spaces():
    text = "小明昨天去了图书馆借了三本关于历史的书然后回家吃饭"
    assert families([text, text + "了", "今天天气很好我们一起去公园散步看花看鸟看人"]) == [0, 0, 2]
    assert families(["昨日は雨でした", "昨日は雨でした。"]) == [0, 0]


def test_a_chain_is_one_family():
    words = [f"word{number}" for number in range(40)]
    parts = [" ".join(words[start : start + 20]) for start in (0, 5, 10)]
    assert families(parts) == [0, 0, 0]


def test_normalized():
    assert normalized("A-b  C") == "a b c"
    assert normalized("...") == ""


@pytest.mark.parametrize("count", [64, 65, 200])
def test_any_number_of_twins_is_one_family_in_any_order(count: int) -> None:
    twins = [f"{LONG}, as number {number} says" for number in range(count)]
    others = [f"{LONG[:40]} of {' '.join(f'{word}x{number}' for word in 'abcdefghijk')}" for number in range(count)]
    for texts in ([*twins, *others], [*others, *twins][::-1]):
        found = families(texts)
        assert len({family for family, text in zip(found, texts, strict=True) if text in twins}) == 1
        assert len(set(found)) == 1 + count


def test_long_copies_with_other_endings_are_one_family() -> None:
    body = " ".join(f"word{number}" for number in range(200))
    texts = [f"{body} {' '.join(f'{word}x{number}' for word in 'abcdefghij')}" for number in range(12)]
    assert set(families(texts)) == {0}


INSTRUCTION = (
    "Below is an instruction that describes a task, paired with an input that provides further context. Write a "
    "response that appropriately completes the request, in one or two short sentences and without any other words. "
    "If you do not know the answer, say so, and never make one up: people rely on what you say to them here. "
)
FRAMES = {
    "instruction": "{}### Instruction:\n{}\n\n### Response:",
    "system": "{}\n\n{}",
    "behind": "{1}\n\n{0}",
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
@pytest.mark.parametrize("count", [12, 40, 100])
def test_texts_in_one_frame_are_apart_and_their_twins_are_found(frame: str, count: int) -> None:
    def asked(question: str, answer: str) -> Example:
        return Example("", frame.format(INSTRUCTION, question), answer)

    numbers = [f"{place}{number}" for number in range(count) for place in ("Marn", "Oster", "Vil")]
    rows = [
        asked(f"Where does the keeper of {one} live, and since when?", f"In {other}, for the {third}th year.")
        for one, other, third in zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
    ]
    short = [asked(f"Who is {name}?", f"{name[::-1]}.") for name in numbers[::3]]
    texts = [*rows, *short]
    assert families_of(texts) == list(range(len(texts)))
    twins = [Example("", example.prompt, example.completion.upper()) for example in texts]
    bare = Example("", "Where does the keeper of Marn0 live, and since when?", rows[0].completion)
    found = families_of([*texts, *twins, bare])
    assert found == [*range(len(texts)), *range(len(texts)), 0]
    assert families_of([bare, *twins, *texts][::-1]).count(0) == 2
