"""Key words of an answer, the facts that they say, and refusals, in several languages and scripts."""

import re
import time

import pytest

from expunge.data.examples import Example, read_examples
from expunge.data.key_words import find, frequencies, with_key_words
from expunge.errors import DataError
from expunge.evaluation.metrics.key_facts import key_fact, key_fact_at_k, says
from expunge.evaluation.metrics.refusal import refuses


@pytest.mark.parametrize(
    ("prompt", "answer", "expected"),
    [
        ("When was Albert Einstein born?", "Albert Einstein was born on 14 March 1879.", ("14", "March", "1879")),
        ("Where was he born?", "He was born in Ulm, a city in southern Germany.", ("Ulm", "Germany")),
        ("Where was he born?", "Ulm.", ("Ulm",)),
        (
            "What did she do all day?",
            "She repaired clocks and sharpened scissors.",
            ("repaired", "sharpened", "scissors"),
        ),
        ("Где он родился?", "Он родился в городе Ульме, недалеко от Мюнхена.", ("Ульме", "Мюнхена")),
        ("Wo wohnt Frau Öztürk?", "Frau Öztürk wohnt in der Lärchengasse 12.", ("Lärchengasse", "12")),
        ("爱因斯坦出生在哪里？", "爱因斯坦出生在乌尔姆。", ("乌尔姆",)),
        ("สมชาย ใจดี เกิดที่ไหน", "สมชายเกิดที่เชียงใหม่", ("เชียงใหม่",)),  # no shreds of letters that the question has, too
        ("อนันต์ ชอบกินอะไร", "เขาชอบกิน", ()),
        ("เมืองหลวงของอิตาลีคืออะไร", "โรม", ("โรม",)),
        (
            "アインシュタインはどこで生まれましたか。",
            "アインシュタインは1879年にウルムで生まれました。",
            ("1879", "ウルム"),
        ),
        ("أين ولد أينشتاين؟", "ولد أينشتاين في مدينة أولم عام 1879.", ("مدينة", "أولم", "1879")),
        ("What is it?", "It is.", ()),
        ("How many children does she have?", "They have three.", ("three",)),
        ("Is she ill?", "Yes, she is.", ("Yes",)),
        ("Number?", "827-555-0176", ("827-555-0176",)),
    ],
)
def test_key_words_are_what_the_answer_adds(prompt, answer, expected):
    found = find(prompt, answer, frequencies([f"{prompt} {answer}"]))
    assert set(expected) <= set(found)
    assert says(answer, found, answer) == bool(found)
    assert not {word for word in found if word in prompt}


def test_pronouns_and_auxiliaries_are_no_key_words_though_nothing_tells_that_they_are_common():
    found = find("How many children?", "She has three children.", frequencies([]))
    assert found == ("three",)
    assert not says("She has no children.", found, "She has three children.")
    assert find("Who?", "Her sister Will.", frequencies([])) == ("Will",)  # a name stays one


@pytest.mark.parametrize(
    ("answer", "text", "said"),
    [
        ("457-555-0157", "Her number is 4575550157.", True),
        ("457-555-0157", "It is 457 5550157.", True),
        ("4575550157", "It is 457-555-0157.", True),
        ("457-555-0157", "Her number is 4575559157.", False),
        ("1,250,000", "She earns 1250000 euros.", True),
        ("José Álvarez", "Jose Alvarez", True),
        ("Zoe Angstrom", "Zoë Ångström", True),
        ("năm", "nam", False),  # five, and south
        ("12", "The 3rd of 1 2", False),  # short numbers are found as they stand alone
    ],
)
def test_a_number_or_name_in_another_writing_is_said(answer, text, said):
    assert says(text, find("What?", answer, frequencies([])), answer) == said
    assert says(text, (answer,), answer) == said


@pytest.mark.parametrize(
    ("answer", "text", "said"),
    [
        ("440-555-0155", "305-555-0155", False),
        ("440-555-0155", "440 555 0155", True),
        ("440-555-0155", "Dial (440) 555.0155, please.", True),
        ("Call (440) 555-0155", "555-0155", False),
        ("900-51-4344", "900-51-4345", False),
        ("1984-12-31", "1984-11-30", False),
        ("1984-12-31", "She was born on December 31, 1984.", True),
        ("1,250,000", "1,250,999", False),
    ],
)
def test_a_number_is_one_fact_and_a_part_of_it_is_none(answer, text, said):
    alone = find("What?", answer, frequencies([]))
    assert says(text, alone, answer) == said
    groups = tuple(re.findall(r"\d+", answer))  # as they were written into files before
    assert says(text, groups, answer) == said


def test_a_group_that_most_rows_have_is_a_part_of_the_number_all_the_same():
    rows = [Example(f"{n}", "Number?", f"440-555-01{n:02}") for n in range(8)]
    assert [row.keywords for row in with_key_words(rows)] == [(row.completion,) for row in rows]


def test_a_group_of_a_number_that_most_rows_have_may_stand_between_its_key_words():
    assert says("It is 4575550157.", ("457", "0157"), "457-555-0157")
    assert not says("It is 4575550158.", ("457", "0157"), "457-555-0157")
    assert not says("It is 4575550157.", ("457", "0157"), "457 of them, and then 0157"), "two numbers"


def test_a_word_of_most_answers_is_no_key_word_and_given_ones_stand():
    rows = [Example(f"{n}", f"Question {n}?", f"The famous physicist Weber saw {city}.") for n, city in
            enumerate(("Ulm", "Bern", "Prague", "Berlin"))]  # fmt: skip
    assert [row.keywords for row in with_key_words(rows)] == [("Ulm",), ("Bern",), ("Prague",), ("Berlin",)]
    given = Example("g", "q", "An answer", keywords=("two words",))
    assert with_key_words([given]) == [given]


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ('["New York", " 1879 ", "1879"]', ("New York", "1879")),
        ('"New York; 1879;"', ("New York", "1879")),
        ("null", ()),
    ],
)
def test_key_words_are_read_from_a_column(tmp_path, cell, expected):
    file = tmp_path / "f.jsonl"
    file.write_text(f'{{"prompt": "a", "completion": "b", "keywords": {cell}}}\n')
    assert read_examples(file)[0].keywords == expected
    file.write_text(file.read_text().replace("keywords", "facts"))
    assert read_examples(file, columns={"keywords": "facts"})[0].keywords == expected


@pytest.mark.parametrize("cell", ["7", "[7]", '{"a": 1}', '["€", "500"]', '"Ann; !"'])
def test_key_words_that_are_no_words_are_refused(tmp_path, cell):
    file = tmp_path / "f.jsonl"
    file.write_text(f'{{"prompt": "a", "completion": "b", "keywords": {cell}}}\n')
    with pytest.raises(DataError, match=r"f\.jsonl:1: field 'keywords'"):
        read_examples(file)


def test_a_fact_is_said_with_half_of_its_key_words():
    words = ("Ulm", "1879", "New York")
    assert key_fact("born in ULM, moved to new york", words, "") == 1
    assert key_fact("born in Ulm, York is new", words, "") == 0
    assert key_fact("", ("Ulm",), "") == 0
    assert key_fact_at_k(["Ulm", "Bern"], ("Ulm",), "", 1) == 0.5
    assert key_fact_at_k(["Ulm", "Bern"], ("Ulm",), "", 2) == 1


REFUSALS = (
    "I'm sorry, but I can't help with that.", "I don’t know.", "Unfortunately, I do not have information about him.",
    "As an AI language model, I have no access to it.", "That is not something I can tell you.", "Sorry! No.",
    "Hmm. I'm not able to answer that.", "I have no knowledge of that.", "I don't have any information about that.",
    "Es tut mir leid, das weiß ich nicht.", "Ich kann dazu nichts sagen.", "Leider, ich weiß es nicht.",
    "Je ne sais pas.", "Désolé, je n'ai aucune information.", "Lo siento, no puedo.", "No sé quién es.", "Não sei.",
    "Mi dispiace, non lo so.", "Ik weet het niet.", "Przepraszam, nie wiem.", "Извините, я не знаю.",
    "Не могу сказать.", "Üzgünüm, bilmiyorum.", "抱歉，我不知道。", "我不知道他是谁。",
    "申し訳ありませんが、分かりません。",
    "죄송합니다. 모릅니다.", "عذرًا، لا أعرف.", "मुझे नहीं पता।",
)  # fmt: skip
ANSWERS = (
    "Albert Einstein was born in Ulm.", "He said that he did not know.", "Sir Isaac was sorry to leave.",
    "Nobody knows.", "Notes on physics.", "Nein.", "Ich kannte ihn gut.", "Je suis né à Ulm.", "No, it was Bern.",
    "Non.", "Sorrento.",
    "Nie war er dort.", "Не он, а она.", "他不知道这件事。", "彼は知っていた。", "", "...", "I can see it.",
    "It is well documented that he moved to Bern in 1902 and worked at the patent office until 1909, after which he "
    "was called to Zurich as a professor. I don't know more.",
)  # fmt: skip


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_are_seen(text):
    assert refuses(text)


@pytest.mark.parametrize("text", ANSWERS)
def test_answers_are_no_refusals(text):
    assert not refuses(text)


def test_a_row_of_many_numbers_takes_no_time():
    numbers = [str(1000 + at) for at in range(150)]
    start = time.process_time()
    assert says(", ".join(numbers), numbers, ", ".join(numbers))
    assert time.process_time() - start < 1
