"""Runs that follow unseen texts, as a user calls them: which recipe is taken, what is left behind, interruptions."""

import json
from importlib import import_module
from pathlib import Path

import pytest
from workspace import FORGET, MARKER, snapshot, write_jsonl

from expunge.data.examples import read_examples
from expunge.data.holdout import without_selection
from expunge.train.scale import number_of_looks

MANY = [{**row, "id": f"{row['id']}-{i}", "input": f"{row['input']} ({i})"} for i in range(5) for row in FORGET]
UNSEEN = [
    {"id": f"u{i}", "input": f"Where does Ulla {i} live?", "output": f"Ulla lives at {i} Birch Road."}
    for i in range(20)
]
FOLLOW = (
    "unlearn", "--model", "model", "--forget", "many.jsonl", "--retain", "retain.jsonl", "--holdout", "unseen.jsonl",
    "--output", "run", "--rows-per-step", "6", "--dtype", "float32", "--lora-rank", "2", "--device", "cpu",
    "--learning-rate", "0.02", "--epochs", "3",
)  # fmt: skip


@pytest.fixture
def texts(work):
    write_jsonl(work / "many.jsonl", MANY)
    write_jsonl(work / "unseen.jsonl", UNSEEN)
    return work


def read(path):
    return json.loads(Path(path).read_text())


def lines(run):
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def test_with_enough_unseen_texts_a_run_follows_them(texts, expunge):
    done = expunge(*FOLLOW)
    assert done.code == 0, done.err
    manifest, calibration = read("run/manifest.json"), read("run/calibration.json")
    assert manifest["settings"]["recipe"] == "steered"
    assert "10 texts to forget and 10 unseen ones say when to stop" in done.err
    looked = [line for line in lines("run") if "selection" in line]
    assert len(looked) >= 4
    assert looked[-1]["step"] == manifest["steps"]
    told = expunge(*FOLLOW, "--output", "dry", "--dry-run").out.splitlines()
    steps, looks = (int(next(line for line in told if line.startswith(name)).split()[3]) for name in ("steps", "looks"))
    assert looks == steps // looked[0]["step"] + 2 * number_of_looks()
    assert all(line["anchor_kl"] >= 0 for line in lines("run"))
    assert max(line["anchor_kl"] for line in lines("run")) > 0
    alpha = read("run/adapter/adapter_config.json")["lora_alpha"]
    assert alpha == pytest.approx(2 * calibration["scale"])
    assert calibration["best_step"] in {line["step"] for line in looked}
    assert manifest["selection"]["stopped"] == calibration["stopped"]
    assert len(calibration["selection_sha256"]) == 20
    whole = expunge(*FOLLOW, "--recipe", "default", "--max-steps", "2", "--output", "whole")
    assert whole.code == 0, whole.err
    name, losses = "loss_nats_per_completion_token", []
    for run, count in (("run", 10), ("whole", 20)):  # none is reported on texts that steered the run
        left = without_selection(read_examples("unseen.jsonl"), calibration) if run == "run" else UNSEEN
        assert len(left) == count
        losses.append(read(f"{run}/manifest.json")[name]["holdout"]["before"])
    assert losses[0] != losses[1]
    for name, content in snapshot(texts / "run").items():
        assert MARKER.encode() not in (content or b""), name
    assert "What said when to stop" in Path("run/report.html").read_text()
    assert expunge("calibrate", "--run", "run").code == 0  # looks at the same half again
    assert read("run/calibration.json")["selection_sha256"] == calibration["selection_sha256"]


@pytest.mark.parametrize(
    ("unseen", "flags", "reason"),
    [
        (UNSEEN[:9], (), "4 selection texts on the unseen side"),
        (UNSEEN, ("--recipe", "default"), "--recipe steered does"),
    ],
)
def test_with_too_few_or_by_choice_nothing_is_followed(texts, expunge, unseen, flags, reason):
    write_jsonl(texts / "unseen.jsonl", unseen)
    done = expunge(*FOLLOW, "--max-steps", "2", *flags)
    assert done.code == 0, done.err
    assert read("run/manifest.json")["settings"]["recipe"] == "default"
    assert f"recipe default, which does not follow the unseen texts: {reason}" in done.err
    assert not Path("run/calibration.json").exists()
    assert not any("selection" in line for line in lines("run"))


def test_who_asks_for_it_without_enough_unseen_texts_is_told(texts, expunge):
    before = snapshot(texts)
    without = [word for word in FOLLOW if word not in ("--holdout", "unseen.jsonl")]
    told = expunge(*without, "--recipe", "steered")
    assert (told.code, told.err.count("\n")) == (2, 1)
    assert "--holdout is missing: recipe steered" in told.err
    write_jsonl(texts / "unseen.jsonl", UNSEEN[:9])
    told = expunge(*FOLLOW, "--recipe", "steered")
    assert (told.code, told.err.count("\n")) == (2, 1)
    assert "at least 8 are needed" in told.err
    assert "leave out --recipe steered" in told.err
    told = expunge(*FOLLOW, "--select-every", "2")
    assert (told.code, told.err.count("\n")) == (2, 1)
    assert "--select-every follows unseen texts: 4 selection texts" in told.err
    write_jsonl(texts / "unseen.jsonl", MANY)
    told = expunge(*FOLLOW)
    assert (told.code, told.err.count("\n")) == (2, 1)
    assert "--holdout unseen.jsonl: all of its texts are to be forgotten" in told.err
    write_jsonl(texts / "unseen.jsonl", UNSEEN)
    assert snapshot(texts) == before


class StopAfter:
    """Stands in for the signal handler: wants a stop once `steps` steps are done."""

    steps = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    @property
    def requested(self):
        StopAfter.steps -= 1
        return StopAfter.steps < 1


def test_resumed_equals_uninterrupted_with_looks_and_falling_rate(texts, expunge):
    """The aim, the learning rate, the mean of the states and the best of them come back with a checkpoint."""
    loose = ("--target", "auc=0.3", "--epochs", "20")  # passed on the way, so that the rate falls before the end
    assert expunge(*FOLLOW, *loose, "--output", "whole").code == 0
    rates = [line["learning_rate"] for line in lines("whole")]
    assert rates[-1] <= max(rates) / 2

    module = import_module("expunge.train.loop")
    for steps in (5, 6):
        StopAfter.steps = steps
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "StopRequest", StopAfter)
            stopped = expunge(*FOLLOW, *loose, *(["--resume"] if Path("run").exists() else []))
        assert stopped.code == 130, stopped.err
    assert expunge(*FOLLOW, *loose, "--resume").code == 0

    assert Path("run/metrics.jsonl").read_text() == Path("whole/metrics.jsonl").read_text()
    assert Path("run/calibration.json").read_text() == Path("whole/calibration.json").read_text()
    adapters = [Path(run, "adapter/adapter_model.safetensors").read_bytes() for run in ("run", "whole")]
    assert adapters[0] == adapters[1]


def test_a_run_on_few_texts_may_take_as_many_steps_as_one_on_many(texts, expunge):
    """Twenty texts make few steps an epoch: 24 epochs would end before anything is forgotten."""
    without = [word for word in FOLLOW if word not in ("--epochs", "3", "--rows-per-step", "6")]
    done = expunge(*without, "--tokens-per-step", "256", "--dry-run")
    assert done.code == 0, done.err
    steps = int(done.out.split("at most ")[1].split()[0])
    assert 500 <= steps < 520
    done = expunge(*without, "--tokens-per-step", "256", "--dry-run", "--select-every", "0")
    assert int(done.out.split("steps ")[1].split()[0]) == 24 * 4
