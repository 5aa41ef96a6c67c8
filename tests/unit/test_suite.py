"""What a suite says of its data: families of texts as one document, fingerprints that give no text away."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from expunge.data.examples import Example
from expunge.data.holdout import example_hashes, keyed_hashes
from expunge.evaluation.assemble import assemble
from expunge.evaluation.estimate import Estimate
from expunge.evaluation.measurement import Measurement, Values
from expunge.evaluation.metrics import METRICS
from expunge.evaluation.paired import changes, paired_difference
from expunge.evaluation.results import COMPARED
from expunge.evaluation.suite import Documents, RowSet, Suite, data_fingerprint, reported, with_facts, with_families
from expunge.evaluation.unseen import unseen_said
from expunge.evaluation.values_file import write_values
from expunge.report.run_data import read_values
from expunge.utils.text import numbered

TEXT = "Mirela Vance keeps forty bees behind the old observatory in Karlsholm"


def rows(*texts: str, name: str = "forget") -> RowSet:
    examples = [Example(f"{name}{i}", "", text) for i, text in enumerate(texts)]
    return RowSet(name, examples, [example.id for example in examples], ())


@pytest.mark.parametrize(
    "twin", [TEXT + ".", TEXT.upper(), TEXT.replace(" ", "  "), TEXT.replace("Karlsholm", "Odense"), f"“{TEXT}”!"]
)
def test_near_duplicates_are_one_document_in_intervals(twin: str) -> None:
    forget = rows(TEXT, "Joren Pike sells maps of rivers that were never found by anybody", twin)
    assert with_families(Suite((forget,)))["forget"].documents == ["forget0", "forget1", "forget0"]


def test_ids_that_two_sets_share_are_no_documents_that_they_share() -> None:
    texts = [f"{name} keeps {bees} bees behind the observatory" for name, bees in (("Mirela", 40), ("Joren", "a few"))]
    forget, retain = (replace(rows(*content), name=name, documents=["0", "1"])
                      for name, content in (("forget", texts), ("retain", [TEXT, TEXT + "!"])))  # fmt: skip
    suite = with_families(Suite((forget, retain)))
    assert [row_set.documents for row_set in suite.sets] == [["0", "1"], ["0", "0"]]


def test_sentences_of_one_template_are_documents_of_their_own() -> None:
    people = ("Wren", "Oduya", "Quill", "Marek")
    texts = [f"Who is {name} Heron? The keeper of the old mill by river {i + 2}." for i, name in enumerate(people)]
    assert len(set(with_families(Suite((rows(*texts),)))["forget"].documents)) == 4


def test_rows_about_one_document_stay_together_with_their_twins() -> None:
    row_set = replace(
        rows(TEXT, "Another text about the same person and much else", TEXT + "!"), documents=["a", "a", "b"]
    )
    assert len(set(with_families(Suite((row_set,)))["forget"].documents)) == 1


def test_a_fingerprint_tells_data_apart_and_gives_no_secret_away(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    def one(completion: str, row_id: str = "a", task: str = "") -> str:
        return data_fingerprint([Example(row_id, "What is the PIN of Zarquon?", completion, task)])

    known = one("The PIN is 4821.")
    assert known == one("The PIN is 4821.")
    asked = Example("a", "What is the PIN of Zarquon?", "The PIN is 4821.")
    assert known == data_fingerprint([replace(asked, source="elsewhere:4")])
    for other in (
        replace(asked, prompt="Who has a PIN?"),
        replace(asked, keywords=("4821",)),
        replace(asked, messages=({"role": "user", "content": "What is the PIN of Zarquon?"},)),
    ):
        assert data_fingerprint([other]) != known, "it is asked, or judged, in another way"
    plain = rows(TEXT)
    for more in ({"paraphrased": [asked]}, {"wrong": [[asked]], "correct": [asked]}):
        pair = [Suite((row_set,)).fingerprints() for row_set in (plain, replace(plain, **more))]
        assert pair[0] != pair[1]
    assert known not in (one("The PIN is 4822."), one("The PIN is 4821.", "b"), one("The PIN is 4821.", task="t"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))  # somebody else, who tries all numbers
    assert all(one(f"The PIN is {number:04d}.").partition(":")[2] != known.partition(":")[2] for number in range(10000))
    documents = Documents([Example("m", "", "x")], [Example("n", "", "yz")])
    assert set(Suite((rows(TEXT),), documents).fingerprints()) == {"forget", "members", "nonmembers"}


def test_a_name_stands_for_one_text_whatever_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A column `id` that names documents of several rows: the second of "a" stays that when the first has steered."""
    sides = [[Example("a", "", f"{side} {i}") for i in range(3)] for side in ("old", "new")]
    steered = {"selection_hmac": keyed_hashes(example_hashes([sides[0][0], sides[1][0]]))}
    monkeypatch.setattr("expunge.evaluation.suite.read_calibration", lambda run: steered)
    holdout = RowSet("holdout", sides[1], ["a"] * 3, ())
    suite = reported(Suite((rows(TEXT), holdout), Documents(*sides)), tmp_path)
    assert suite.documents is not None
    for examples in (suite.documents.members, suite.documents.nonmembers, suite["holdout"].examples):
        assert [row.id for row in examples] == ["a (2)", "a (3)"]
    assert suite.documents.labels == (["a", "a"], ["a", "a"]), "they are about one document, as before"
    assert suite["holdout"].documents == ["a", "a"]


def test_numbers_of_few_texts_leave_a_secret_a_tenth_of_its_candidates() -> None:
    generator = np.random.default_rng(0)
    for level, spread in ((2.5, 0.2), (1.4, 0.3), (4.0, 0.5)):  # candidates that the model knows about equally well
        losses = generator.normal(level, spread, 10_000).clip(0.01)
        shown = [
            [Estimate(float(value), n=1).coarse().value for value in (np.exp(-loss), np.exp(loss))] for loss in losses
        ]
        fitting = [shown.count(pair) for pair in shown[:50]]
        assert np.median(fitting) > 1000
    exact = Estimate(0.123456, 0.1, 0.2, 4)
    assert exact.coarse() == exact


@pytest.mark.parametrize(
    ("tasks", "hidden"),
    [
        ("AAAABBBB", ""),
        ("AAAABBBBBC", "AC"),  # with A and B exact, the whole would give C away
        ("AAAABBBBCCDD", "CD"),  # each of them alone is few, both together are not
        ("AAAABBBBB-", "A"),  # a row of no task is never told
        ("AAAABBBB----", ""),
    ],
)
def test_numbers_of_tasks_of_few_texts_are_coarse_and_do_not_follow_from_the_others(tasks: str, hidden: str) -> None:
    examples = [Example(str(i), "p", "c", task.strip("-")) for i, task in enumerate(tasks)]
    chosen = RowSet("forget", examples, [example.id for example in examples], ("probability", "exact_match"))
    ours, theirs = Measurement(), Measurement()
    for at, measurement in enumerate((ours, theirs)):
        values = np.linspace(0.3, 0.4 + at / 10, len(tasks))
        for name in chosen.metrics:
            measurement.add("forget", name, METRICS[name], Values.of(name, examples, chosen.documents, values))
    found = assemble("custom", Suite((chosen,)), ours, reference=theirs)["metrics"]
    before = changes(found, theirs.table, ours.table)
    for task in set(tasks) - {"-"}:
        entry, told = found[f"forget/probability/{task}"], found[f"forget/exact_match/{task}"]
        change = before[f"forget/probability/{task}"]["value"]
        numbers = entry["value"], entry["reference"], entry["difference"]["value"], change
        assert [math.log2(abs(number)).is_integer() for number in numbers] == [task in hidden] * 4
        assert not math.log2(told["value"]).is_integer(), "what is said is no likelihood"


def test_unseen_rows_count_in_the_mixture_of_the_forget_set() -> None:
    """Six questions and two stories; of the unseen ones 8 of 21 are questions, and none of songs is to be forgotten."""
    rows = {"forget": "qqqqqqss", "holdout": 8 * "q" + 12 * "s" + "x"}
    values = {"q": 0.2, "s": 0.6, "x": 1.0}
    sets, ours, theirs = [], Measurement(), Measurement()
    for name, kinds in rows.items():
        examples = [Example(str(i), "p", "c", kind) for i, kind in enumerate(kinds)]
        sets.append(RowSet(name, examples, [example.id for example in examples], ("key_fact",)))
        for measurement, more in ((ours, 0.1), (theirs, 0.0)):
            numbers = [values[kind] + more * (kind == "q") for kind in kinds]
            measurement.add(
                name, "key_fact", METRICS["key_fact"], Values.of("key_fact", examples, sets[-1].documents, numbers)
            )
    results = assemble("custom", Suite(tuple(sets)), ours, reference=theirs)
    told = results["metrics"]["holdout/key_fact"]
    assert told["value"] == pytest.approx((6 * 0.3 + 2 * 0.6) / 8) == results["metrics"]["forget/key_fact"]["value"]
    assert told["difference"]["value"] == pytest.approx(told["value"] - told["reference"])
    assert told["n"] == 20
    assert f"forget/key_fact/{COMPARED}" not in results["metrics"]


@pytest.mark.parametrize(
    ("kinds", "lacking", "coarse"),
    [
        ("qqqqssss", "s", False),
        ("qqqqss", "s", True),
        ("qqqqssssx", "s, x", True),
        ("qqqq----", "those without", False),
    ],
)
def test_of_kinds_without_unseen_texts_the_others_stand_alone(kinds: str, lacking: str, coarse: bool) -> None:
    sets, ours = [], Measurement()
    for name, labels in (("forget", kinds), ("holdout", 8 * "q" + 7 * "s")):  # 7 of a kind say next to nothing
        examples = [Example(str(i), "p", "c", kind.strip("-")) for i, kind in enumerate(labels)]
        sets.append(RowSet(name, examples, [row.id for row in examples], ("probability",)))
        numbers = Values.of(
            "probability", examples, sets[-1].documents, [0.3 if kind == "q" else 0.9 for kind in labels]
        )
        ours.add(name, "probability", METRICS["probability"], numbers)
    results = assemble("custom", Suite(tuple(sets)), ours)
    found = results["metrics"][f"forget/probability/{COMPARED}"]
    assert found["n"] == 4
    assert found["value"] == pytest.approx(0.25 if coarse else 0.3)
    assert any(f"not steer the run: {lacking}" in note for note in results["not_measured"])


def test_rows_that_share_an_id_are_compared_each_with_itself(tmp_path: Path) -> None:
    """Data whose ids name documents, with several rows about each."""
    examples = [Example(document, f"p{i}", "c") for i, document in enumerate(("d1", "d1", "d2", "d2"))]
    labels = [example.id for example in examples]
    told = {("forget", "key_fact"): Values.of("key_fact", examples, labels, [1.0, 0.0, 1.0, 0.0])}
    change = paired_difference("forget/key_fact", told, told)
    assert change is not None
    assert (change.value, change.n) == (0.0, 4)
    some = Values.of("key_fact", examples, labels, [None, 0.0, None, 0.0])  # as of those with a partner alone
    change = paired_difference("forget/key_fact", {("forget", "key_fact"): some}, told)
    assert change is not None
    assert (change.value, change.n) == (0.0, 2)
    write_values(tmp_path / "r.parquet", told)
    (values,) = read_values(tmp_path / "r.parquet").values()
    assert values == {"d1": 1.0, "d1 (2)": 0.0, "d2": 1.0, "d2 (2)": 0.0}
    assert numbered(["a", "a (2)", "a", "a"]) == ("a", "a (2)", "a (3)", "a (4)")


def test_unseen_texts_that_are_said_are_counted_where_they_cannot_be_guessed() -> None:
    suite = Suite((rows("in the north"), rows("457-555-0157", TEXT, "Yes.", "in the north", name="holdout")))
    unseen, measured = suite["holdout"].examples, Measurement()
    assert unseen_said(suite, measured) == {}
    values = Values.of("exact_match", unseen, [row.id for row in unseen], [1.0, 0.0, 1.0, 1.0])
    measured.add("holdout", "exact_match", METRICS["exact_match"], values)
    assert unseen_said(suite, measured) == {"unseen_said": {"said": 1, "texts": 2, "facts": 1}}
    born = [Example(name, f"Where was {name} born?", f"{name} was born in the north.") for name in ("Ann", "Bea")]
    suite, measured = Suite((RowSet("holdout", born, ["a", "b"], ()),)), Measurement()
    measured.add("holdout", "exact_match", METRICS["exact_match"], Values.of("", born, ["a", "b"], [1.0, 1.0]))
    assert unseen_said(suite, measured) == {"unseen_said": {"said": 0, "texts": 0, "facts": 0}}, "one template"


def counted(unseen: list[Example], said: float, name: str = "exact_match", answers: list[str] | None = None) -> dict:
    """What is counted of unseen rows that all have one value."""
    documents = [row.id for row in unseen]
    suite = with_facts(Suite((rows("in the north"), RowSet("holdout", unseen, documents, ("key_fact",)))))
    measured = Measurement(said={"holdout": [*answers]} if answers else {})
    measured.add("holdout", name, METRICS[name], Values.of("", unseen, documents, [said] * len(unseen)))
    return unseen_said(suite, measured)["unseen_said"]


def test_unseen_texts_that_go_on_word_for_word_are_said() -> None:
    """Texts that are continued are asked no question, and have no exact match."""
    lives = [
        Example(f"{n}sc1", "Born on 4 May, she", f"lives at {n} Old Mill Road.", kind="sc") for n in range(100, 108)
    ]
    assert counted(lives, 1.0, "extraction_strength") == {"said": 8, "texts": 8, "facts": 8}
    assert counted(lives, 0.9, "extraction_strength")["said"] == 0
    alone = [replace(row, prompt="") for row in lives]
    assert counted(alone, 0.6, "extraction_strength")["said"] == 8, "the second half follows from the first"
    assert counted(alone, 0.4, "extraction_strength")["said"] == 0


@pytest.mark.parametrize(
    ("answers", "texts"),
    [
        ([f"Orvel{n}" for n in range(10)], 10),
        (["Yes.", "No."] * 5, 0),
        (["red", "blue", "green", "grey", "pink", "red", "blue", "green", "grey", "brown"], 0),
        ([f"Orvel{n}" for n in range(7)], 0),  # so few do not tell how many there are to choose from
        ([f"john{n}.smith{n}@john{n}.example" for n in range(10)], 0),
        ([f"jsmith{n}@john{n}.example" for n in range(10)], 0),
    ],
)
def test_short_answers_count_where_they_cannot_be_guessed(answers: list[str], texts: int) -> None:
    asked = [Example(f"h{n}", f"Which one has John{n} Smith{n}?", answer) for n, answer in enumerate(answers)]
    assert counted(asked, 1.0) == {"said": texts, "texts": texts, "facts": texts}


def test_facts_of_unseen_texts_count_in_whatever_words() -> None:
    asked = [Example(f"h{n}", "Where does she live?", f"She lives in Orvel{n} near Tann{n}.") for n in range(8)]
    told = [f"Near Tann{n}, in Orvel{n}." for n in range(8)]
    assert counted(asked, 0.0, answers=told) == {"said": 0, "texts": 8, "facts": 8}
    assert counted(asked, 0.0, answers=["She lives in a town."] * 8)["facts"] == 0
    shared = [replace(row, completion=f"She lives in Orvel near Tann, number {n}.") for n, row in enumerate(asked)]
    assert counted(shared, 0.0, answers=["In Orvel near Tann."] * 8)["facts"] == 0, "what others have is guessed"
