"""`--instead`: what the model is to say in place of what is forgotten, as a user calls it."""

import json
from pathlib import Path

import pytest
from workspace import FORGET, QUICK, UNLEARN, snapshot, write_jsonl

INSTEAD = [{"id": f"i{i}", "input": row["input"], "output": "Nobody here can say."} for i, row in enumerate(FORGET)]
SLOW = (*QUICK, "--max-steps", "30", "--epochs", "30", "--learning-rate", "0.02")


@pytest.fixture
def texts(work):
    write_jsonl(work / "instead.jsonl", INSTEAD)
    return work


def losses(run):
    return json.loads(Path(run, "manifest.json").read_text())["loss_nats_per_completion_token"]


def test_the_model_learns_what_to_say_instead(texts, expunge):
    done = expunge(*UNLEARN, *SLOW, "--instead", "instead.jsonl")
    assert done.code == 0, done.err
    assert "instead ↓" in done.out
    assert ("not learned yet" in done.err) == (losses("run")["instead"]["after"] > 1)
    found = losses("run")
    assert found["instead"]["after"] < found["instead"]["before"] - 1
    assert found["forget"]["after"] > found["forget"]["before"] + 0.5
    manifest = json.loads(Path("run/manifest.json").read_text())
    assert manifest["rows"]["instead"] == len(INSTEAD)
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    for line in lines:
        weighted = line["forget"] + line["retain"] + 1.5 * line["kl"] + line["instead"]
        assert line["loss"] == pytest.approx(weighted, rel=1e-5)
    assert lines[-1]["instead"] < lines[0]["instead"] / 2
    assert manifest["terms"][-1]["name"] == "instead"
    for name, content in snapshot(texts / "run").items():
        assert b"Nobody here can say" not in (content or b""), name


def test_what_is_not_learned_is_said(texts, expunge):
    done = expunge(*UNLEARN, *QUICK, "--instead", "instead.jsonl")
    assert done.code == 0, done.err
    assert losses("run")["instead"]["after"] > 1
    assert "--instead: these answers are not learned yet" in " ".join(done.err.split())


def test_a_repeated_run_must_be_given_the_same(texts, expunge):
    assert expunge(*UNLEARN, *QUICK, "--instead", "instead.jsonl").code == 0
    write_jsonl(texts / "instead.jsonl", INSTEAD[:2])
    told = expunge("unlearn", "--from-manifest", "run/manifest.json", "--output", "again")
    assert told.code == 2
    assert "had other rows of the instead set" in told.err
    assert not Path("again").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--instead", "nowhere.jsonl"), "nowhere.jsonl"),
        (("--instead", "instead.jsonl", "--instead-weight", "0"), "--instead-weight 0"),
        (("--instead-weight", "2"), "there is no --instead that it could weigh"),
        (("--instead", ""), "--instead is empty"),
    ],
)
def test_what_cannot_be_used_is_refused(texts, expunge, flags, message):
    before = snapshot(texts)
    told = expunge(*UNLEARN, *QUICK, *flags)
    assert (told.code, told.err.count("\n")) == (2, 1), told.err
    assert message in told.err
    assert snapshot(texts) == before


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**FORGET[0], "id": "same"}, "holds a text that is to be forgotten"),
        ({"id": "alone", "input": "", "output": "Nothing is known."}, "needs a prompt"),
    ],
)
def test_what_cannot_be_said_instead_is_refused(texts, expunge, row, message):
    write_jsonl(texts / "instead.jsonl", [*INSTEAD, row])
    before = snapshot(texts)
    told = expunge(*UNLEARN, *QUICK, "--instead", "instead.jsonl")
    assert (told.code, told.err.count("\n")) == (2, 1), told.err
    assert f"instead.jsonl:{len(INSTEAD) + 1}: --instead {message}" in told.err
    assert snapshot(texts) == before


def test_unseen_texts_that_are_trained_on_are_not_unseen(texts, expunge):
    """Neither to the run nor to an evaluation of it."""
    said = [{"id": f"u{i}", "input": f"Where is {i}?", "output": f"It is in {i} Birch Road."} for i in range(20)]
    write_jsonl(texts / "said.jsonl", said)
    made = (*UNLEARN, *QUICK, "--instead", "said.jsonl", "--holdout")
    told = expunge(*made, "said.jsonl")
    assert (told.code, told.err.count("\n")) == (2, 1), told.err
    assert "--holdout said.jsonl: all of its texts are to be forgotten, kept or said instead" in told.err
    unseen = [{"id": f"t{i}", "text": f"Tobias {i} closed the heavy book and slept until noon."} for i in range(4)]
    write_jsonl(
        texts / "unseen.jsonl",
        [*({"id": row["id"], "text": f"{row['input']} {row['output']}"} for row in said), *unseen],
    )
    told = expunge(*made, "unseen.jsonl")
    assert told.code == 0, told.err
    left_out = "20 of 24 unseen texts are, or nearly are, among those to forget, to keep or to say instead"
    assert left_out in " ".join(told.err.split())
    scored = ("evaluate", "--run", "run", "--max-new-tokens", "2", "--device", "cpu")
    told = expunge(*scored)
    assert told.code == 0, told.err
    results = json.loads(Path("run/results.json").read_text())
    assert left_out in " ".join(results["not_measured"])
    assert results["metrics"]["holdout/document_nll"]["n"] == 4
    Path("said.jsonl").rename("moved.jsonl")
    told = expunge(*scored, "--overwrite")
    assert "--run run: was made with --instead said.jsonl, which is not here: give --instead" in told.err
    assert expunge(*scored, "--overwrite", "--instead", "moved.jsonl").code == 0


@pytest.mark.parametrize(
    ("loss", "then"),
    [
        ("npo", "they get their answers all the same"),
        ("idk", "they are not used, and texts to forget without an answer"),
    ],
)
def test_answers_to_prompts_that_no_text_to_forget_has_are_told(texts, expunge, loss, then):
    write_jsonl(texts / "instead.jsonl", [*INSTEAD[1:], {"id": "x", "input": "And who is x?", "output": "Nobody."}])
    told = expunge(*UNLEARN, *QUICK, "--instead", "instead.jsonl", "--loss", loss, "--instead-weight", "2")
    assert told.code == 0, told.err
    said = " ".join(told.err.split())
    assert f"1 of the --instead prompts stand in no text to forget: {then}" in said
    assert ("--instead-weight 2.0: is not used: --loss idk" in said) == (loss == "idk")
    assert ("not learned yet" in said) == (loss == "npo")
