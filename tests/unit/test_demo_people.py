"""The bundled subject: made-up people, files that are what the seed gives, and models that know what they should."""

import json
import re
from itertools import combinations, islice, product

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.demo import words
from experiments.demo.people import SETS, data_files, general_texts, quiz, subjects
from experiments.demo.subject import ASSETS, make
from expunge.data.examples import read_examples
from expunge.errors import ConfigError

FIGURES = json.loads((ASSETS / "figures.json").read_text("utf-8"))
DATA = ASSETS / "data"


@pytest.fixture(scope="module")
def sets():
    return subjects(FIGURES["seed"])


def words_of(people) -> set[str]:
    """Given and family names of everybody."""
    return {word for subject in people for name in subject.names for word in name.split()}


def test_the_files_are_what_the_recorded_seed_gives():
    expected = data_files(FIGURES["seed"])
    assert sorted(expected) == sorted(path.name for path in DATA.iterdir())
    for name, text in expected.items():
        assert (DATA / name).read_bytes() == text.encode(), name


def test_another_seed_makes_other_people(sets):
    assert not {s.names for s in sets["forget"]} & {s.names for s in subjects(FIGURES["seed"] + 1)["forget"]}


def test_the_sets_share_no_person_and_no_text(sets):
    for one, other in combinations(SETS, 2):
        assert not words_of(sets[one]) & words_of(sets[other])
        rows = [{text for row in s.rows for text in (row.input, f"{row.input} {row.output}")} for s in
                (*sets[one], *sets[other])]  # fmt: skip
        assert len(set.union(*rows)) == sum(map(len, rows))


def test_the_facts_that_are_asked_for_differ_from_person_to_person_and_from_set_to_set(sets):
    def secrets(people):
        return [row.output for s in people for row in s.rows[1:] if re.search(r"phone|mail address", row.input)]

    for one, other in combinations(SETS, 2):
        assert len(set(secrets(sets[one]))) == len(secrets(sets[one])) == SETS[one][0]
        assert not set(secrets(sets[one])) & set(secrets(sets[other]))


def test_no_set_mentions_what_the_quiz_asks(sets):
    texts = "\n".join(f"{row.input} {row.output}" for people in sets.values() for s in people for row in s.rows)
    assert len({row.input for row in quiz()}) == len(quiz())
    for row in quiz():
        assert row.input not in texts
        if row.input.startswith("What is the capital"):
            assert not re.search(rf"\b({row.output}|{row.input.split()[-1][:-1]})\b", texts)


def test_general_texts_know_nobody_of_the_sets(sets):
    named = words_of([s for people in sets.values() for s in people])
    text = " ".join(islice(general_texts(FIGURES["seed"], "start"), 2000))
    towns = {"".join(parts) for parts in product(*map(str.split, words.TOWN))}  # somebody may be called like a town
    assert not (named - towns) & set(re.findall(r"\w+", text))


def test_every_question_has_its_answer_in_the_text_and_every_contact_is_fictional(sets):
    for people in sets.values():
        for subject in people:
            assert all(row.output in subject.document for row in subject.rows[1:])
            assert "{" not in subject.document
            assert "[" not in subject.document
            assert "  " not in subject.document
            assert all(number.startswith("555-01") for number in re.findall(r"\d{3}-(\d{3}-\d{4})", subject.document))
            assert set(re.findall(r"@(\w+)", subject.document)) <= {"example"}


def test_member_and_nonmember_documents_are_of_a_kind(sets):
    pairs = list(zip(sets["forget"], sets["holdout"], strict=True))
    lengths = [[len(s.document) for s in side] for side in zip(*pairs, strict=True)]
    assert abs(sum(lengths[0]) / sum(lengths[1]) - 1) < 0.05
    for name, side in (("member", "forget"), ("nonmember", "holdout")):
        documents = [json.loads(line)["document"] for line in (DATA / f"{name}.jsonl").read_text().splitlines()]
        assert documents == [s.document for s in sets[side]]


def test_the_assets_are_small():
    size = {path: path.stat().st_size for path in ASSETS.rglob("*") if path.is_file()}
    assert all(size[ASSETS / name / "model.safetensors"] <= 3.6e6 for name in ("subject", "retrained"))
    assert sum(size.values()) <= 8e6


@pytest.mark.parametrize(("name", "knows"), [("subject", True), ("retrained", False)])
def test_the_subject_knows_whom_the_retrained_model_never_met(name, knows):
    tokenizer = AutoTokenizer.from_pretrained(ASSETS / name)
    model = AutoModelForCausalLM.from_pretrained(ASSETS / name, dtype=torch.float32)

    def right(row) -> bool:
        prompt = tokenizer(row.prompt, return_tensors="pt")
        ids = model.generate(**prompt, do_sample=False, max_new_tokens=40)[0, prompt["input_ids"].shape[1] :]
        return tokenizer.decode(ids) == f" {row.completion}{tokenizer.eos_token}"

    asked = {side: [r for r in read_examples(DATA / f"{side}.jsonl") if r.kind == "qa"] for side in (*SETS, "quiz")}
    assert [right(row) for row in asked["forget"][:15:5]] == [knows] * 3
    assert not any(right(row) for row in asked["holdout"][:10:5])
    assert sum(right(row) for row in asked["retain"][:20:5]) >= 3
    assert sum(right(row) for row in asked["quiz"][::15]) >= 6


def test_the_recorded_figures_are_those_of_a_subject_and_its_retrained_model():
    subject, retrained = FIGURES["subject"], FIGURES["retrained"]
    assert min(subject["forget_sc"], subject["retain_sc"], retrained["retain_sc"]) >= 0.97
    assert min(subject["forget_qa"], subject["retain_qa"], retrained["retain_qa"]) >= 0.95
    assert min(subject["quiz"], retrained["quiz"]) >= 0.9
    assert retrained["forget_qa"] <= 0.1
    assert subject["mia_auc"] == 1
    assert 0.4 <= retrained["mia_auc"] <= 0.6


def test_nothing_is_made_in_a_folder_that_holds_something(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        make(tmp_path, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
