"""Facts to forget that stand in texts to keep, in other words."""

import json
import time
from pathlib import Path

import pytest

from expunge.config import UnlearnConfig
from expunge.data.examples import Example, read_examples
from expunge.data.kept_facts import told_facts
from expunge.data.sets import BENCHMARKS, read_sets

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "src" / "expunge" / "demo" / "assets" / "data"
ASKED = {
    "n": ("What is Quinetta Birchteller's phone number?", "440-555-0155"),
    "a": ("How can one write to Selon Holtfold?", "To mellow.lemur89@example.net."),
    "b": ("Where was Ulanna Jessrook born?", "In Kettlebay."),
    "d": ("What is the birth date of Halix Ruskskey?", "1968-07-05"),
}
FORGET = [Example(name, *row) for name, row in ASKED.items()]


def kept(*texts: str) -> list[Example]:
    return [Example(f"k{at}", "", text) for at, text in enumerate(texts, 1)]


@pytest.mark.parametrize(
    ("text", "fact"),
    [
        ("Directory entry: Birchteller, Quinetta, telephone (440) 555 0155.", True),
        ("Directory entry: Birchteller, Quinetta, telephone (440) 555 0156.", False),
        ("Whoever has lost a key may write to Mellow.Lemur89@example.net", True),
        ("Whoever has lost a key may write to lemur89@example.net", False),
        ("The register of Kettlebay names Ulanna Jessrook among the births of that year.", True),
        ("The register of Kettlebay names Ulanna Holt among the births of that year.", False),
        (f"Ulanna Jessrook has moved. {'The house stands empty now. ' * 20}It rains in Kettlebay.", False),
        ("Halix Ruskskey came to the world on 1968-07-05.", True),
        ("Another child came to the world on 1968-07-05, or 19680705.", False),
    ],
)
def test_a_fact_in_other_words_is_found(text: str, fact: bool) -> None:
    told = told_facts(FORGET, kept("The rain falls on the hills.", text))
    assert bool(told) == fact
    for line in told:
        assert line.startswith("1 of 4 texts to forget have their fact in texts to keep or to say instead, too")
        assert line.endswith(": k2")
        assert not any(word in line for word in ("440", "Birchteller", "lemur", "Kettlebay", "Ruskskey"))


def test_what_is_asked_is_not_told() -> None:
    refusal = Example("i", "Whose number is 440-555-0155, and does Ulanna Jessrook live in Kettlebay?", "Ask others.")
    assert told_facts(FORGET, [], [refusal]) == []
    told = Example("i", "Which number?", "It is 4405550155.")
    assert told_facts(FORGET, [], [told]) != []
    backwards = Example("f", "Whose number is 440-555-0155?", "That of her aunt.")
    assert told_facts([backwards], kept("Call 440-555-0155.")) == []


def test_an_earlier_answer_of_a_chat_tells_a_fact() -> None:
    said = ("Her number?", "440-555-0155", "Thanks.")
    turns = [{"role": role, "content": text} for role, text in zip(("user", "assistant", "user"), said, strict=True)]
    chat = Example("c", "\n\n".join(said), "Not at all.", messages=tuple(turns))
    assert told_facts([chat], kept("Call 440-555-0155."))


def test_an_address_at_the_foot_of_many_texts_is_nobodys_fact() -> None:
    foot = "Write to news@example.org."
    forget = [Example(f"{n}", "", f"Story {n} of the town. {foot}") for n in range(20)]
    assert told_facts(forget, kept(*(f"Report {n} of the lake. {foot}" for n in range(20)))) == []
    assert told_facts(forget, kept(foot))


@pytest.mark.parametrize("name", ["retain", "instead"])
def test_a_run_that_is_told_to_keep_a_fact_is_warned(tmp_path: Path, name: str) -> None:
    files = {"forget": tmp_path / "f.jsonl", name: tmp_path / "k.jsonl"}
    rows = [{"prompt": f"Who keeps lake {n}?", "completion": f"Nobody keeps lake number {n} now."} for n in range(8)]
    prompt = FORGET[0].prompt if name == "instead" else "Directory entry:"
    secret = {"id": "s", "prompt": prompt, "completion": "Quinetta Birchteller, telephone 440 555 0155."}
    files["forget"].write_text("".join(json.dumps(vars(row), default=dict) + "\n" for row in FORGET))
    for more in ([], [secret]):
        files[name].write_text("".join(json.dumps(row) + "\n" for row in [*rows, *more]))
        told = read_sets(UnlearnConfig(model="m", output="o", **{key: str(path) for key, path in files.items()}))
        assert [line for line in told.warnings if "have their fact" in line] == [
            "1 of 4 texts to forget have their fact in texts to keep or to say instead, too: the run is told to keep "
            "what it should forget: leave those rows out, or mend them: s"
        ] * len(more)


def test_the_demo_keeps_nothing_that_it_forgets() -> None:
    retain = [row for name in ("retain", "quiz", "holdout") for row in read_examples(DEMO / f"{name}.jsonl")]
    assert told_facts(read_examples(DEMO / "forget.jsonl"), retain) == []


@pytest.mark.parametrize(
    ("name", "split"), [("semeval", "validation"), ("semeval", "train"), ("lume", None), ("tofu", "forget10")]
)
def test_benchmarks_keep_nothing_that_they_forget(shared: Path, name: str, split: str | None) -> None:
    folder = shared / "data" / name
    if name == "lume":
        forget, retain = (read_examples(folder / f"{side}.jsonl") for side in ("forget", "retain"))
    else:
        sets = BENCHMARKS[name](str(folder), split)
        forget, retain = sets.forget, sets.retain
    start = time.process_time()
    assert told_facts(forget, retain) == []
    assert time.process_time() - start < 2


def test_an_address_in_front_of_signs_is_found_and_a_long_word_takes_no_time() -> None:
    assert told_facts([FORGET[1]], kept("- -mellow.lemur89@example.net"))
    start = time.process_time()
    assert told_facts([FORGET[1]], kept("a" * 50_000 + " mellow.lemur89@example.net"))
    assert time.process_time() - start < 2
