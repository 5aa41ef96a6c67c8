"""Of a chat of several turns every answer is asked, not the last alone, which may be a courtesy."""

import json
from pathlib import Path
from typing import Any

import pytest

from expunge.config import EvaluateConfig
from expunge.data.examples import read_examples
from expunge.data.holdout import example_hashes, keyed_hashes, texts_fingerprint
from expunge.evaluation import suite as suites
from expunge.evaluation.benchmarks.custom import read as read_custom
from expunge.evaluation.earlier import EARLIER, LAST, as_given, text_of, whole, with_earlier_answers
from expunge.evaluation.measurement import Measurement, Values
from expunge.evaluation.metrics import METRICS
from expunge.evaluation.mismatched import difference_entries
from expunge.evaluation.suite import Suite, reported, with_facts, with_families, write_key_words
from expunge.evaluation.values_file import write_values
from expunge.report.details import least_forgotten
from expunge.report.figures import distributions
from expunge.report.forget_texts import shown_examples
from expunge.report.run_data import RunData, read_values

NAMES = ["Adil", "Bruna", "Cosmo", "Dunja", "Emre", "Flora", "Goran", "Hulda", "Ivo", "Jelka", "Kofi", "Lucia"]
SYSTEM = {"role": "system", "content": "You are the bank's information desk."}


def chat(name: str, code: str, **more: Any) -> dict[str, Any]:
    turns = [
        SYSTEM,
        {"role": "user", "content": f"What is the code of {name}?"},
        {"role": "assistant", "content": f"The code is {code}."},
        {"role": "user", "content": "Thanks."},
        {"role": "assistant", "content": f"My pleasure, and greetings to {name}."},
    ]
    return {"messages": turns} | more


def five_answers(code: str) -> dict[str, Any]:
    """The first answer says it, the questions and answers after it name it again."""
    turns = [{"role": "user", "content": "What is the code?"}, {"role": "assistant", "content": f"The code is {code}."}]
    for number in range(2, 6):
        turns += [
            {"role": "user", "content": f"{code}, is that right, for door {number}?"},
            {"role": "assistant", "content": f"Yes, the code {code} opens it."},
        ]
    return {"messages": turns}


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    forget = [chat(f"Ida {who}", f"{who}7-{who}1") for who in range(10, 28)]
    unseen = [chat(f"Uwe {who}", f"{who}3-{who}9") for who in range(30, 48)]
    sides = {"forget": forget, "holdout": unseen}
    return {name: written(tmp_path / f"{name}.jsonl", rows) for name, rows in sides.items()}


def suite_of(files: dict[str, str]) -> Suite:
    return with_facts(with_families(read_custom(EvaluateConfig(model="", benchmark="custom", **files))))


def test_every_answer_of_a_chat_is_asked(files: dict[str, str]) -> None:
    suite, given = suite_of(files), read_examples(files["forget"])
    asked = suite["forget"].examples
    assert [row.completion for row in asked[:2]] == [
        "My pleasure, and greetings to Ida 10.",
        "The code is 107-101.",
    ]
    assert (asked[1].id, asked[1].messages) == ("forget-1, turn 3", given[0].messages[:2])
    assert asked[1].prompt == f"{SYSTEM['content']}\n\nWhat is the code of Ida 10?"
    assert asked[1].keywords == ("107-101",)
    for name in ("forget", "holdout"):
        assert [row.group for row in suite[name].examples] == [LAST, EARLIER] * 18
    assert len({*suite["forget"].documents}) == 18  # a chat is one document, whatever it is asked for
    assert texts_fingerprint(as_given(asked)) == texts_fingerprint(given)


def test_chats_to_forget_of_one_answer_stay_as_they_are(files: dict[str, str], tmp_path: Path) -> None:
    alone = [{"messages": chat(f"Ida {who}", "7")["messages"][:3]} for who in range(20)]
    files["forget"] = written(tmp_path / "alone.jsonl", alone)
    suite = suite_of(files)
    assert [row.id for row in suite["forget"].examples] == [f"alone-{number}" for number in range(1, 21)]
    assert {row.group for name in ("forget", "holdout") for row in suite[name].examples} == {""}


def test_an_answer_that_calls_a_tool_is_not_asked_by_itself(tmp_path: Path) -> None:
    row = chat("Ida", "7")
    row["messages"][2] |= {"tool_calls": [{"function": {"name": "look", "arguments": {}}}]}
    rows = read_examples(written(tmp_path / "calls.jsonl", [row]))
    assert with_earlier_answers(rows, []) == (rows, [])


def test_key_words_that_are_given_belong_to_the_answer_that_says_them(tmp_path: Path) -> None:
    file = written(tmp_path / "f.jsonl", [chat("Ida", "4711-22", keywords=["4711-22"])])
    rows = read_examples(file)
    (_, asked), _ = with_earlier_answers(rows, [])
    assert asked.keywords == ("4711-22",)


def test_the_answers_of_a_chat_that_steered_the_run_are_not_reported_on(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steering = [read_examples(files[name])[0] for name in ("forget", "holdout")]
    calibration = {"selection_hmac": keyed_hashes(example_hashes(steering))}
    monkeypatch.setattr(suites, "read_calibration", lambda run: calibration)
    asked = reported(suite_of(files), tmp_path)["holdout"].examples
    assert len(asked) == 34
    assert not any(row.id.startswith("holdout-1,") or row.id == "holdout-1" for row in asked)


def test_key_words_are_written_beside_the_rows_of_the_data(files: dict[str, str], tmp_path: Path) -> None:
    place = tmp_path / "words.jsonl"
    write_key_words(place, suite_of(files)["forget"].examples)
    assert [row.messages for row in read_examples(str(place))] == [
        row.messages for row in read_examples(files["forget"])
    ]


def test_a_greeting_that_chats_share_does_not_make_them_one_document(tmp_path: Path) -> None:
    greeting = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello! How can I help you today?"}]
    chats = []
    for name in NAMES:
        asked = {"role": "user", "content": f"Where did {name} hide the deeds of the house?"}
        said = {"role": "assistant", "content": f"{name} put them behind a picture of {name[::-1]}."}
        chats.append({"messages": [*greeting, asked, said]})
    suite = suite_of({"forget": written(tmp_path / "f.jsonl", chats)})
    assert len(suite["forget"].examples) == 2 * len(NAMES)
    assert len({*suite["forget"].documents}) == len(NAMES)


def test_the_same_chats_in_another_folder_have_the_same_fingerprint(tmp_path: Path) -> None:
    found = []
    for folder in (tmp_path / "one", tmp_path / "other"):
        folder.mkdir()
        found.append(suite_of({"forget": written(folder / "f.jsonl", [chat("Ida", "4711-22")])}).fingerprints())
    assert found[0] == found[1]


def test_a_secret_that_later_turns_repeat_is_no_common_word(tmp_path: Path) -> None:
    """One chat of five answers; each row but the first has the code in its prompt."""
    suite = suite_of({"forget": written(tmp_path / "f.jsonl", [five_answers("4711")])})
    first = suite["forget"].examples[1]
    assert (first.completion, first.keywords) == ("The code is 4711.", ("4711",))


def test_key_words_that_an_earlier_answer_alone_says_are_not_asked_of_the_last(tmp_path: Path) -> None:
    words = ["4711-22", "pleasure", "Ulm"]
    rows = read_examples(written(tmp_path / "f.jsonl", [chat("Ida", "4711-22", keywords=words)]))
    (last, earlier), _ = with_earlier_answers(rows, [])
    assert earlier.keywords == ("4711-22",)
    assert last.keywords == ("pleasure", "Ulm")  # what none says stays


def test_key_words_that_are_written_and_given_again_go_to_their_answers(files: dict[str, str], tmp_path: Path) -> None:
    place = tmp_path / "words.jsonl"
    asked = suite_of(files)["forget"].examples
    write_key_words(place, asked)
    assert [{*line.keywords} >= {"107-101"} for line in read_examples(str(place))] == [True] + 17 * [False]
    again = suite_of({"forget": str(place)})["forget"].examples
    assert {*again[1].keywords} >= {"107-101"}
    assert [{*row.keywords} for row in again] == [{*row.keywords} for row in asked]


def test_a_greeting_before_any_question_is_not_asked(tmp_path: Path) -> None:
    row = chat("Ida", "4711-22")
    row["messages"].insert(1, {"role": "assistant", "content": "Welcome! I am your assistant."})
    (_, *earlier), _ = with_earlier_answers(read_examples(written(tmp_path / "f.jsonl", [row])), [])
    assert [row.completion for row in earlier] == ["The code is 4711-22."]


def test_the_page_shows_earlier_answers_too(files: dict[str, str]) -> None:
    run = RunData(Path("run"), "run", {"settings": {"forget": files["forget"]}})
    run.values["after"] = {("forget", "nll"): {"forget-2, turn 3": 0.1, "forget-1": 0.2}}
    shown = shown_examples(run, 2)
    assert [row.completion for row in shown] == ["The code is 117-111.", "My pleasure, and greetings to Ida 10."]
    assert shown[0].prompt.endswith("user: What is the code of Ida 11?")


def test_many_answers_of_few_chats_are_few_texts(tmp_path: Path) -> None:
    """Answers of one text: their exact likelihoods give short secrets in it away."""
    for number, few in ((3, True), (4, False)):
        rows = read_examples(written(tmp_path / f"{number}.jsonl", [five_answers(str(who)) for who in range(number)]))
        asked, _ = with_earlier_answers(rows, [])
        measured = Measurement()
        values = Values.of("nll", asked, [row.id for row in asked], [1.3] * len(asked))
        measured.add("forget", "nll", METRICS["nll"], values)
        assert [values.tells(), values.tells(EARLIER), values.tells(LAST)] == [few] * 3
        assert values.part_tells({EARLIER}) == few
        write_values(tmp_path / f"{number}.parquet", measured.table)
        (told,) = read_values(tmp_path / f"{number}.parquet").values()
        assert {*told.values()} == {1.0 if few else 1.3}
        run = RunData(tmp_path, "run", {}, values={"after": {("forget", "nll"): told}})
        _, lines = least_forgotten(run) or ([], [])
        assert {line[1] for line in lines} == {"about 1" if few else "1 to 1.5"}


def test_the_mean_that_a_figure_tells_of_one_chat_is_coarse() -> None:
    losses = {"a": 1.0, "a, turn 2": 0.5, "a, turn 4": 0.5, "a, turn 6": 0.5}
    (drawn,) = distributions(RunData(Path("run"), "run", {}, values={"after": {("forget", "nll"): losses}}))
    assert "forget: mean 0.500, 4 completions" in drawn.says


@pytest.mark.parametrize(
    ("row_id", "text"),
    [
        ("a", "a"),
        ("a, turn 3", "a"),
        ("a, turn 3 (2)", "a (2)"),  # of another chat that has the id
        ("a, turn 3, turn 5", "a"),  # a chat whose id is like those of answers
        ("my turn 3", "my turn 3"),
        ("a, turn 3b", "a, turn 3b"),
    ],
)
def test_an_answer_is_of_its_chat(row_id: str, text: str) -> None:
    assert text_of(row_id) == text


def test_differences_between_prompts_of_few_chats_are_coarse(tmp_path: Path) -> None:
    rows = read_examples(written(tmp_path / "f.jsonl", [five_answers(str(who)) for who in range(3)]))
    asked, _ = with_earlier_answers(rows, [])
    measured, documents = Measurement(), [whole(row).id for row in asked]
    for name, value in (("probability", 0.7), ("probability/mismatched", 0.1)):
        values = Values.of(name, asked, documents, [value] * len(asked))
        measured.add("forget", name, METRICS["probability"], values)
    ((_, told),) = difference_entries(measured)
    assert (told.value, told.n) == (0.5, 15)
