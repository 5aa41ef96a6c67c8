"""From a name to texts to forget: what the answers agree on, what is said of everybody, and the files."""

import dataclasses
import json
import os
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from expunge.cli.elicit import elicit as command
from expunge.cli.output import Output
from expunge.config import ElicitConfig, EvaluateConfig, UnlearnConfig
from expunge.errors import ConfigError, DataError, RunError
from expunge.evaluation.generate import Generation
from expunge.evaluation.metrics.refusal import refuses
from expunge.interview import run
from expunge.interview.facts import agreed, mentioned, renamed, short, to_the_point
from expunge.interview.questions import OTHERS, questions_of, read_questions
from expunge.interview.run import elicit
from tiny import save_tiny

ASKED = "Where was Ann Weber born?"
ULM = ["She was born in Ulm, Germany.", "Ann Weber was born in Ulm.", "In the town of Ulm, on the Danube.", "In Bern."]
SOMEWHERE = [["He was born in Germany, I think."] * 3, ["Born in Germany."] * 3]


def test_what_most_answers_say_and_nobody_else_is_the_fact():
    fact = agreed(ASKED, ULM, SOMEWHERE, Counter())
    assert (fact.state, fact.keywords, fact.said, fact.asked, fact.others) == ("kept", ("Ulm",), 3, 4, 0)
    assert fact.answer == "Ann Weber was born in Ulm."


def test_words_that_stand_in_most_answers_but_not_together_are_no_fact():
    apart = ["In Ulm, 1879, Bonn.", "In Ulm.", "In 1879.", "In Bonn.", "Ulm, or Bonn. Or 1879."]
    fact = agreed(ASKED, apart, [], Counter())
    assert (fact.state, len(fact.keywords), fact.said) == ("kept", 2, 4)


@pytest.mark.parametrize(
    ("answers", "others", "state"),
    [
        (["In Ulm.", "In Bern.", "In Rome.", "In Oslo."], SOMEWHERE, "varies"),
        (["In Germany."] * 4, SOMEWHERE, "of everybody"),
        (["In Germany."] * 4, [], "kept"),
        (["I don't know.", "I'm sorry, I can't say.", "I don't know.", "In Ulm."], SOMEWHERE, "declined"),
        (["", "", "", "Ulm"], SOMEWHERE, "varies"),
    ],
)
def test_what_is_not_kept_says_why(answers, others, state):
    assert agreed(ASKED, answers, others, Counter()).state == state


def test_an_answer_ends_with_its_sentences_and_its_fact():
    assert short("One. Two! Three? Four.") == "One. Two! Three?"
    assert short("A whole sentence. One that was cut") == "A whole sentence."
    assert short("No end at all") == "No end at all"
    assert short("  First.\n\nSecond.") == "First."
    assert short("<think>\nOne.\n\nTwo.\n</think>\n\nThree.") == short("One.</think>\n\nThree.") == "Three."
    assert short("<think>\nOne. Two.") == ""
    assert short("他出生在乌尔姆。他") == "他出生在乌尔姆"
    assert to_the_point("Born in Ulm. A nice town. It rains.", ("Ulm",)) == "Born in Ulm."


def test_names_beside_it_are_those_that_stand_in_several_answers():
    said = ["She met Niels Bohr and Ann Weber.", "With Niels Bohr.", "Max van der Berg.", "Lise Meitner!",
            "Max van der Berg and Lise Meitner"]  # fmt: skip
    assert mentioned(said, ["Ann Weber"], 6) == ["Niels Bohr", "Max van der Berg", "Lise Meitner"]
    assert mentioned(said, ["Ann Weber"], 1) == ["Niels Bohr"]
    assert mentioned(said, ["Ann Weber"], 6, ["He met Lise Meitner."]) == ["Niels Bohr", "Max van der Berg"]


@pytest.mark.parametrize("kind", OTHERS)
def test_every_question_says_the_name_in_all_its_forms(kind):
    questions = questions_of(kind)
    assert len({question.id for question in questions}) == len(questions) >= 6
    for question in questions:
        assert all("{name}" in text for text in (question.ask, question.again, question.begin)), question.id
        assert question.prompt("Ann", chat=True).count("{") == 0


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"ask": "Who?"}, "field 'ask' does not say {name}"),
        ({"again": "Who is {name}?"}, "missing field 'ask'"),
        ({"ask": "", "again": "Who is {name}?"}, "missing field 'ask'"),
        ({"ask": 7}, "field 'ask' is not a string"),
    ],
)
def test_questions_that_cannot_be_asked_are_refused(tmp_path, row, message):
    file = tmp_path / "q.jsonl"
    file.write_text(json.dumps(row))
    with pytest.raises(DataError, match=message):
        read_questions(str(file))


def test_settings_out_of_range_are_refused():
    for more, message in (({"samples": 1}, "--samples 1"), ({"output": "f.csv"}, "--output f.csv: end it in .jsonl"),
                          ({"neighbours": "./f.jsonl"}, "--neighbours ./f.jsonl: is the --output, or goes beside it"),
                          ({"neighbours": "f_unseen.jsonl"}, "is the --output, or goes beside it: name another file"),
                          ({"neighbour_names": "A B"}, "--neighbour-names need --neighbours")):  # fmt: skip
        with pytest.raises(ConfigError, match=message):
            ElicitConfig(**{"model": "m", "about": "A", "output": "f.jsonl", **more}).validate()


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings for a model that knows two facts of Ann Weber and one of Niels Bohr; `calls` are the names asked."""
    save_tiny(tmp_path / "model", "llama")
    calls: list[str] = []

    def answers(prompt: str, samples: int) -> list[str]:
        if "Ann Weber" in prompt and "born in" in prompt:
            said = ["She was born in Ulm with Niels Bohr. It is so."] * samples
        elif "Ann Weber" in prompt and "known" in prompt:
            said = ["Ann Weber painted ships with Niels Bohr."] * samples
        elif "Niels Bohr" in prompt and "born in" in prompt:
            said = ["He was born in Copenhagen."] * samples
        elif "Niels Bohr" in prompt and "known" in prompt:
            said = ["He painted ships with Ann Weber."] * samples
        else:
            said = [f"It is {chr(97 + n) * 4} and {len(prompt)}{n}." for n in range(samples)]
        return said

    def generate(loaded: Any, rows: Any, name: str, *, samples: int, **_: Any) -> list[Generation]:
        calls.append(name)
        return [Generation([], [], text) for row in rows for text in answers(row.prompt, max(1, samples))]

    monkeypatch.setattr(run, "generate", generate)
    settings = {"model": str(tmp_path / "model"), "about": "Ann Weber", "output": str(tmp_path / "f.jsonl"),
                "neighbours": str(tmp_path / "n.jsonl"), "samples": 3, "device": "cpu"}  # fmt: skip
    return {"settings": settings, "calls": calls, "answers": answers}


def lines(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text().splitlines()]


def test_a_name_becomes_rows_with_key_words_for_the_owner_alone(asked, tmp_path):
    found = elicit(ElicitConfig(**asked["settings"]))
    rows = {row["id"]: row for row in lines(asked["settings"]["output"])}
    assert set(rows) == {"birthplace", "known"}
    assert rows["birthplace"]["prompt"] == "Ann Weber was born in the town of"  # the tiny model has no chat template
    assert rows["birthplace"]["completion"] == "She was born in Ulm with Niels Bohr."
    assert rows["birthplace"]["keywords"] == ["Ulm", "Niels", "Bohr"]
    assert (rows["birthplace"]["said"], rows["birthplace"]["said of others"]) == ("4 of 4", "0 of 4")
    assert found.neighbours == ["Niels Bohr"]
    assert [(row["id"], row["keywords"]) for row in lines(asked["settings"]["neighbours"])] == [
        ("birthplace-neighbour1", ["Copenhagen"])
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.jsonl", "f_unseen.jsonl", "model", "n.jsonl"]
    for name in ("f.jsonl", "f_unseen.jsonl", "n.jsonl"):
        assert (tmp_path / name).stat().st_mode & 0o077 == 0
    states = Counter(fact.state for name, _, fact in found.facts if name == "Ann Weber")
    assert states == {"kept": 2, "varies": len(questions_of("person")) - 2}


def test_the_same_is_written_of_made_up_names_where_it_is_not_nearly_the_same_text(asked, tmp_path):
    elicit(ElicitConfig(**asked["settings"]))
    unseen = {row["id"]: row for row in lines(str(tmp_path / "f_unseen.jsonl"))}
    assert list(unseen) == [
        f"known-unseen{n}" for n in (1, 2, 3, 4)
    ]  # of the birthplace, whose answer names nobody else,
    assert unseen["known-unseen1"]["prompt"] == "Marek Oduyason is best known for"  # too much would stay the same
    assert unseen["known-unseen1"]["completion"] == "Marek Oduyason painted ships with Niels Bohr."


@pytest.mark.parametrize(
    ("text", "names", "parts", "expected"),
    [
        ("Ann Weber: Weber's ships. Ann, Annika.", ["Ann Weber"], True, "Ida Berg: Berg's ships. Ida, Annika."),
        ("Is Weber A. W.?", ["Ann Weber", "Weber", "A. W."], True, "Is Berg Ida Berg?"),
        ("The Blue Ship is The best ship.", ["The Blue Ship"], False, "Ida Berg is The best ship."),
        ("杜甫生于712年。", ["杜甫"], True, "Ida Berg生于712年。"),
        ("홍길동은 시인이다.", ["홍길동"], True, "Ida Berg은 시인이다."),
        ("Curies Labor, Marie Curies Werk.", ["Marie Curie"], True, "Curies Labor, Ida Bergs Werk."),
        ("Bo of Boston met Bo Field.", ["Bo Field", "Bo"], True, "Ida of Boston met Ida Berg."),
        ("The Rock was in the film The Mummy. Rock!", ["The Rock"], True, "Ida Berg was in the film The Mummy. Berg!"),
        ("Who is van Gogh? A van, of Gogh.", ["van Gogh"], True, "Who is Ida Berg? A van, of Berg."),
        ("Al Gore won. Al was glad.", ["Al Gore"], True, "Ida Berg won. Ida was glad."),
    ],
)
def test_a_text_is_told_of_another_name(text, names, parts, expected):
    assert renamed(text, names, "Ida Berg", parts=parts) == expected


def test_a_chat_model_gets_the_questions_in_other_words_and_refusals_too(asked, tmp_path):
    save_tiny(tmp_path / "model", "llama", "chat")
    elicit(ElicitConfig(**asked["settings"] | {"neighbours": None}))
    rows, again, instead = (lines(str(tmp_path / f"f{end}.jsonl")) for end in ("", "_paraphrased", "_instead"))
    assert [row["id"] for row in rows] == [row["id"] for row in again] == [row["id"] for row in instead] != []
    for row, other, refusal in zip(rows, again, instead, strict=True):
        assert row["prompt"] == refusal["prompt"] != other["prompt"]
        assert row["completion"] == other["completion"]
        assert refuses(refusal["completion"])


@pytest.mark.parametrize(("fewest", "unseen"), [(8, []), (0, ["my f_unseen.jsonl"])])
def test_what_it_says_to_do_next_takes_what_it_wrote(asked, tmp_path, capsys, monkeypatch, fewest, unseen):
    monkeypatch.setattr("expunge.data.holdout.FEWEST", fewest)
    save_tiny(tmp_path / "model", "llama", "chat")
    settings = ElicitConfig(**asked["settings"] | {"output": str(tmp_path / "my f.jsonl")})
    assert command(settings, Output(quiet=True)) == 0
    said = capsys.readouterr().out
    told = [shlex.split(line) for line in said.splitlines() if line.startswith("  expunge ")]
    written = {str(path) for path in tmp_path.glob("*.jsonl")}
    assert len(written) == 4
    names = [Path(word).name for words in told for word in words if word in written]
    assert names == ["my f.jsonl", *unseen, "my f_instead.jsonl", "my f_paraphrased.jsonl"]
    assert ("With 16 rows to forget" in said) == (fewest == 8)
    assert "my f_instead.jsonl' it says something else" in said
    for words in told:
        chosen = {"unlearn": UnlearnConfig, "evaluate": EvaluateConfig}[words[1]]
        flags = {word[2:].replace("-", "_") for word in words if word.startswith("--")}
        assert flags <= {field.name for field in dataclasses.fields(chosen)}


def test_an_interrupted_call_goes_on_to_the_same_files(asked, tmp_path, monkeypatch):
    elicit(ElicitConfig(**asked["settings"]))
    whole = {name: (tmp_path / name).read_bytes() for name in ("f.jsonl", "f_unseen.jsonl", "n.jsonl")}
    for name in whole:
        (tmp_path / name).unlink()
    generate = run.generate

    def interrupted(*given: Any, **options: Any) -> list[Generation]:
        if len(asked["calls"]) > 3:
            raise KeyboardInterrupt
        return generate(*given, **options)

    asked["calls"].clear()
    monkeypatch.setattr(run, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        elicit(ElicitConfig(**asked["settings"]))
    assert not (tmp_path / "f.jsonl").exists()
    assert (tmp_path / "f.jsonl.part").stat().st_mode & 0o077 == 0
    monkeypatch.setattr(run, "generate", generate)
    with pytest.raises(RunError, match="an interrupted call has left it: --resume goes on, --overwrite begins again"):
        elicit(ElicitConfig(**asked["settings"]))
    with pytest.raises(RunError, match="was asked with other settings"):
        elicit(ElicitConfig(**asked["settings"] | {"samples": 5}, resume=True))
    part, config = tmp_path / "f.jsonl.part", tmp_path / "model" / "config.json"
    answered, settings = part.read_bytes(), config.read_text()
    status = config.stat()
    config.write_text(settings + " ")
    with pytest.raises(RunError, match="with other settings or of another model"):
        elicit(ElicitConfig(**asked["settings"], resume=True))
    config.write_text(settings)
    os.utime(config, ns=(status.st_atime_ns, status.st_mtime_ns))
    for damage in (answered.replace(b'"answers"', b'"said"'), b"mine\n", b""):
        part.write_bytes(damage)
        with pytest.raises((DataError, RunError), match=r"f\.jsonl\.part"):
            elicit(ElicitConfig(**asked["settings"], resume=True))
        assert part.read_bytes() == damage
    part.write_bytes(answered)
    with monkeypatch.context() as edited:
        edited.setattr(
            run,
            "questions_of",
            lambda kind: [dataclasses.replace(question, again="") for question in questions_of(kind)],
        )
        with pytest.raises(RunError, match="was asked with other settings"):
            elicit(ElicitConfig(**asked["settings"], resume=True))
    part.write_bytes(answered + b'{"name": "cut o')
    monkeypatch.setattr(run, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        elicit(ElicitConfig(**asked["settings"], resume=True))
    assert part.read_bytes() == answered, "nothing is written behind a line that was cut off"
    monkeypatch.setattr(run, "generate", generate)
    asked["calls"].clear()
    (tmp_path / "f.jsonl").write_text("of another call, which --overwrite was given for\n")
    elicit(ElicitConfig(**asked["settings"], resume=True, overwrite=True))
    assert "Ann Weber" not in asked["calls"]
    assert {name: (tmp_path / name).read_bytes() for name in whole} == whole
    assert not (tmp_path / "f.jsonl.part").exists()


def test_files_that_are_there_stay_unless_they_may_be_replaced(asked, tmp_path):
    (tmp_path / "n.jsonl").write_text("mine")
    with pytest.raises(RunError, match=r"^--neighbours .*n\.jsonl: exists already: give another name, or --overwrite$"):
        elicit(ElicitConfig(**asked["settings"]))
    for name, beside in (("f", ""), ("f_instead", r" .*f_instead\.jsonl, which goes beside it,")):
        (tmp_path / f"{name}.jsonl").write_text("mine")
        with pytest.raises(RunError, match=rf"^--output .*f\.jsonl:{beside} exists already: give another name"):
            elicit(ElicitConfig(**asked["settings"] | {"neighbours": None}))
        (tmp_path / f"{name}.jsonl").unlink()
    assert not asked["calls"]
    assert (tmp_path / "n.jsonl").read_text() == "mine"
    with pytest.raises(RunError, match="--resume: there is no"):
        elicit(ElicitConfig(**asked["settings"] | {"neighbours": None}, resume=True))
    elicit(ElicitConfig(**asked["settings"], overwrite=True))
    assert len(lines(asked["settings"]["neighbours"])) == 1


@pytest.mark.parametrize(("more", "names"), [({}, 11), ({"neighbour_names": "A B, C D"}, 7), ({"neighbours": None}, 5)])
def test_a_dry_run_counts_the_names_and_writes_nothing(asked, tmp_path, more, names):
    settings = asked["settings"] | {"output": str(tmp_path / "absent" / "f.jsonl")} | more
    found = elicit(ElicitConfig(**settings, dry_run=True))
    assert (found.names, found.prompts) == (names, 13)
    assert found.seconds is not None
    assert asked["calls"] == ["Ann Weber"] * 2  # most likely answers and drawn ones, of all questions at once
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_missing_folders_are_made_and_one_that_cannot_be_is_said_before_the_model_is_loaded(asked, tmp_path):
    outputs = {name: str(tmp_path / "a" / name / "f.jsonl") for name in ("output", "neighbours")}
    elicit(ElicitConfig(**asked["settings"] | outputs))
    assert all(lines(file) for file in outputs.values())
    for name, file in outputs.items():
        below = {name: f"{file}/f.jsonl", "model": str(tmp_path / "none")}
        with pytest.raises(RunError, match=r"cannot make the folder .*f\.jsonl \(Not a directory|File exists"):
            elicit(ElicitConfig(**asked["settings"] | below))


def test_a_model_that_says_nothing_steady_leaves_no_file(asked, tmp_path):
    found = elicit(ElicitConfig(**asked["settings"] | {"about": "Nobody Atall", "neighbours": None}))
    assert not found.files
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
