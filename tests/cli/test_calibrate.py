"""`expunge calibrate` as a user calls it."""

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import AutoModelForCausalLM
from workspace import FORGET, snapshot, write_jsonl

from expunge.cli.main import main
from expunge.data.examples import read_examples
from expunge.data.holdout import example_hashes, keyed_hashes, without_selection

MANY = [{**row, "id": f"{row['id']}-{i}", "input": f"{row['input']} ({i})"} for i in range(5) for row in FORGET]
UNSEEN = [
    {"id": f"u{i}", "input": f"Where does Ulla {i} live?", "output": f"Ulla lives at {i} Birch Road."}
    for i in range(20)
]


ANY = ("--target-auc", "0.1", "--max-drift", "1", "--min-retain", "0")
"""Whatever forgets most: at its scale they are met."""
DONE = (0, 3)
"""The scale is written, whether the criteria are met at it or not."""
NONE = ("--max-drift", "0", "--min-retain", "1")
"""What no adapter that does anything meets."""


@pytest.fixture(scope="module")
def finished(template, tmp_path_factory):
    """A folder with enough texts to choose by and run/, whose adapter is strong enough to have an effect."""
    folder = tmp_path_factory.mktemp("finished") / "work"
    shutil.copytree(template, folder)
    write_jsonl(folder / "many.jsonl", MANY)
    write_jsonl(folder / "unseen.jsonl", UNSEEN)
    command = (
        "unlearn", "--model", "model", "--forget", "many.jsonl", "--retain", "retain.jsonl",
        "--holdout", "unseen.jsonl", "--recipe", "npo",
        "--max-steps", "8", "--learning-rate", "0.02", "--dtype", "float32", "--lora-rank", "2", "--output", "run",
    )  # fmt: skip
    with contextlib.chdir(folder):
        assert main(command) == 0
    return folder


@pytest.fixture
def run(finished, work):
    """The finished run, in a private copy of its folder, which is the current one."""
    shutil.copytree(finished, work, dirs_exist_ok=True)
    return work / "run"


def test_the_chosen_strength_is_what_plain_peft_loads(run, expunge):
    before = json.loads((run / "adapter" / "adapter_config.json").read_text())["lora_alpha"]
    found = expunge("calibrate", "--run", "run", *ANY)
    assert found.code == 0, found.err
    record = json.loads((run / "calibration.json").read_text())
    after = json.loads((run / "adapter" / "adapter_config.json").read_text())["lora_alpha"]
    assert after == pytest.approx(before * record["scale"])
    assert f"scale         {record['scale']:g} times" in found.out
    assert [point["scale"] for point in record["curve"]] == sorted(point["scale"] for point in record["curve"])
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("model"), "run/adapter")
    scalings = {module.scaling["default"] for module in model.modules() if isinstance(module, LoraLayer)}
    assert list(scalings) == [pytest.approx(after / 2)]

    again = expunge("calibrate", "--run", "run", *ANY)
    assert again.code == 0
    assert json.loads((run / "calibration.json").read_text()) == record  # from the trained strength, not from this one


def test_bounds_that_nothing_keeps_weaken_the_adapter_and_a_second_try_brings_it_back(run, expunge):
    alphas = []
    for bounds, code, word in ((NONE, 3, "NOT MET"), (ANY, 0, "met")):
        told = expunge("calibrate", "--run", "run", *bounds)
        assert told.code == code, told.err
        assert f"criteria      {word}: " in told.out
        alphas.append(json.loads((run / "adapter" / "adapter_config.json").read_text())["lora_alpha"])
    assert 0 < alphas[0] < alphas[1]


def test_a_scale_that_is_not_proven_changes_nothing(run, expunge, monkeypatch):
    before = snapshot(run)
    monkeypatch.setattr("expunge.model.saved._alphas", lambda model: {"lora_alpha": 1000.0, "alpha_pattern": {}})
    told = expunge("calibrate", "--run", "run", *ANY)
    assert told.code == 2
    assert f"{Path('run/adapter')}: the saved adapter is not the one that was measured" in told.err
    assert snapshot(run) == before


def test_evaluation_leaves_the_selection_out(run, expunge):
    command = (
        "evaluate", "--benchmark", "custom", "--model", "model", "--adapter", "run", "--forget", "many.jsonl",
        "--holdout", "unseen.jsonl", "--max-new-tokens", "2", "--overwrite", "--output", "out.json",
    )  # fmt: skip
    assert expunge(*command).code == 0
    whole = json.loads((run.parent / "out.json").read_text())
    assert expunge("calibrate", "--run", "run").code in DONE
    told = expunge(*command)
    assert told.code == 0, told.err
    half = json.loads((run.parent / "out.json").read_text())
    assert whole["metrics"]["membership/loss_auc"]["n"] == 40
    assert half["metrics"]["membership/loss_auc"]["n"] == 20
    assert "10 and 10 texts that did not steer the adapter (of 20 and 20)" in told.out
    assert half["metrics"]["forget/probability"]["n"] == 20  # all rows: none of these metrics chose the strength
    with contextlib.chdir("run/adapter"):
        above = {name: f"../../{name}" for name in ("model", "many.jsonl", "unseen.jsonl", "out.json")}
        assert expunge(*(({"run": "."} | above).get(argument, argument) for argument in command)).code == 0
    assert json.loads((run.parent / "out.json").read_text())["metrics"] == half["metrics"]

    plain = [argument for argument in command if argument not in ("--adapter", "run")]
    assert expunge(*plain[:-1], "before.json").code == 0
    before = json.loads((run.parent / "before.json").read_text())
    assert before["fingerprint"]["data"] == half["fingerprint"]["data"]  # of what was given
    beside = expunge("compare", "before.json", "out.json", "--names", "before,after")
    assert "membership is of other texts" in beside.out
    assert beside.err == ""
    paired = expunge("compare", "before.json", "out.json", "--names", "before,after", "--paired", "--format", "csv")
    assert paired.code == 0, paired.err
    rows = [line.split(",") for line in paired.out.splitlines()]
    counts = {tuple(row[i] for i in (0, 3)): row[7] for row in rows}
    assert counts["membership/loss_auc", "before"] == "40"
    assert counts["membership/loss_auc", "after - before"] == "20"


def test_scores_of_another_strength_are_no_scores_of_this_adapter(run, expunge):
    """A page or card that shows them would be a false certificate."""
    score = (
        "evaluate", "--benchmark", "custom", "--model", "model", "--adapter", "run", "--forget", "many.jsonl",
        "--max-new-tokens", "2", "--overwrite", "--output", "run/results_after.json",
    )  # fmt: skip
    outdated = "another adapter, or of this one at another scale"
    card = run / "adapter" / "README.md"
    assert expunge(*score).code == 0
    assert expunge("report", "run", "--card", "--overwrite").code == 0
    assert outdated not in (run / "report.html").read_text()
    assert "Scores on custom" in card.read_text()
    assert expunge("calibrate", "--run", "run", *NONE).code == 3
    assert expunge("report", "run", "--card", "--overwrite").code == 0
    assert outdated in (run / "report.html").read_text()
    assert "Scores on custom" not in card.read_text()
    assert expunge(*score).code == 0
    assert expunge("report", "run", "--card", "--overwrite").code == 0
    assert outdated not in (run / "report.html").read_text()
    assert "Scores on custom" in card.read_text()


def test_texts_that_were_ever_looked_at_are_left_out_for_good(run, work, expunge):
    """By one calibration or by an earlier one, on whatever other texts; those that are kept are no unseen ones."""
    other = [{**row, "id": f"o{i}", "input": f"{row['input']} Now?"} for i, row in enumerate(UNSEEN)]
    kept = [json.loads(line) for line in (work / "retain.jsonl").read_text().splitlines()]
    write_jsonl(work / "other.jsonl", [*other, *kept])
    assert expunge("calibrate", "--run", "run").code in DONE
    first = json.loads((run / "calibration.json").read_text())
    assert expunge("calibrate", "--run", "run", "--holdout", "other.jsonl").code in DONE
    second = json.loads((run / "calibration.json").read_text())
    assert set(first["selection_hmac"]) < set(second["selection_hmac"])
    assert second["texts"]["nonmembers"] == 10
    write_jsonl(work / "other.jsonl", other)
    for name in ("unseen", "other"):
        left = without_selection(read_examples(str(work / f"{name}.jsonl")), second)
        assert 8 <= len(left) <= 10  # half of twenty, less one in 256


def test_losses_and_card_are_those_of_the_strength_that_is_written(run, expunge):
    def losses():
        return json.loads((run / "manifest.json").read_text())["loss_nats_per_completion_token"]

    trained = losses()
    bounds = ANY
    told = expunge("calibrate", "--run", "run", *NONE)
    assert "warning: loss of the forget set" in told.err
    off = losses()
    assert trained["forget"]["before"] < off["forget"]["after"] < trained["forget"]["after"]
    assert off["retain"]["before"] == trained["retain"]["before"]
    assert f"{off['forget']['after']:.2f}" in (run / "adapter" / "README.md").read_text()
    told = expunge("calibrate", "--run", "run", *bounds)
    assert "loss of the forget set" in told.err
    assert "warning" not in told.err
    scale = json.loads((run / "calibration.json").read_text())["scale"]
    assert (losses()["forget"]["after"] > trained["forget"]["after"]) == (scale > 1)
    assert losses()["forget"]["after"] > off["forget"]["after"] + 0.1


@pytest.mark.parametrize("renamed", [0, 1, 3])
def test_a_calibration_that_is_killed_is_no_half_of_one(run, expunge, renamed):
    """The page said "set to 1.86719 times", and the adapter had the scale of its training.

    First its list of files gets its name, then each of the files.
    """
    trained = json.loads((run / "adapter/adapter_config.json").read_text())["lora_alpha"]
    child = os.fork()
    if child == 0:
        replace, done = os.replace, []

        def killed(source, target):
            if len(done) == renamed:
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(replace(source, target))

        os.replace = killed
        try:
            expunge("calibrate", "--run", "run", *NONE)
        finally:
            os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL

    told = expunge("report", "run", "--overwrite")
    assert told.code == 0, told.err
    page = (run / "report.html").read_text()
    alpha = json.loads((run / "adapter/adapter_config.json").read_text())["lora_alpha"]
    if renamed == 0:
        assert alpha == trained
        assert "the adapter was then set to" not in page
    else:
        scale = json.loads((run / "calibration.json").read_text())["scale"]
        assert scale != 1
        assert alpha == pytest.approx(trained * scale)
        assert f"the adapter was then set to {scale:g} times its trained scale" in page
    told = expunge("merge", "--run", "run", "--output", "merged")
    assert told.code == 0, told.err


def test_no_text_is_in_what_it_writes(run, expunge):
    assert expunge("calibrate", "--run", "run").code in DONE
    text = (run / "calibration.json").read_text()
    assert "Zarquon" not in text
    assert "Ulla" not in text


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--run", "nowhere"), "--run nowhere: not a finished run"),
        (("--run", "done"), "give --holdout"),
        (("--run", "done", "--holdout", "few.jsonl"), "16 texts to forget are needed as well as 16 unseen ones"),
        (("--run", "run", "--holdout", "many.jsonl"), "--holdout many.jsonl: all of its texts are to be forgotten"),
        (("--run", "run", "--test", "few.jsonl"), "--test and --retain-test 0.2: both say which texts to test on"),
        (("--run", "run", "--target-auc", "half"), "--target-auc half: must be a number"),
        (("--run", "run", "--max-drift", "-1"), "--max-drift -1.0: must lie between 0 and 1"),
    ],
)
def test_what_cannot_be_used_is_refused_and_changes_nothing(run, work, expunge, flags, message):
    write_jsonl(work / "few.jsonl", UNSEEN[:3])
    before = (run / "adapter" / "adapter_config.json").read_bytes()
    told = expunge("calibrate", *flags)
    assert told.code == 2
    assert message in told.err
    assert told.err.count("\n") == 1
    assert (run / "adapter" / "adapter_config.json").read_bytes() == before
    assert not (run / "calibration.json").exists()


def test_other_texts_than_those_of_the_run_are_refused(run, work, expunge):
    """Also those that are only tested on: their losses stand in the manifest beside those of before."""
    inns = [{"input": f"What is inn {i} of Saltmarsh?"} for i in range(4)]
    for name, rows in (("test", inns), ("instead", FORGET)):
        for prefix, answer in (("", "It is an old one."), ("other-", "Nobody says.")):
            write_jsonl(work / f"{prefix}{name}.jsonl", [{**row, "output": answer} for row in rows])
    command = (
        "unlearn", "--model", "model", "--forget", "many.jsonl", "--retain", "retain.jsonl", "--holdout",
        "unseen.jsonl", "--recipe", "npo", "--max-steps", "1", "--dtype", "float32", "--lora-rank", "2",
        "--test", "test.jsonl", "--instead", "instead.jsonl", "--output", "both",
    )  # fmt: skip
    assert expunge(*command).code == 0
    for name in ("test", "instead"):
        told = expunge("calibrate", "--run", "both", f"--{name}", f"other-{name}.jsonl")
        assert told.code == 2, told.err
        assert f"--{name} other-{name}.jsonl: these are not the {name} texts" in told.err
    told = expunge("calibrate", "--run", "both", "--test", "test.jsonl")
    assert told.code in DONE, told.err


def test_unseen_texts_that_have_all_steered_have_no_loss(run, expunge):
    def losses():
        return json.loads((run / "manifest.json").read_text())["loss_nats_per_completion_token"]

    assert "holdout" in losses()
    assert expunge("calibrate", "--run", "run").code in DONE
    record = json.loads((run / "calibration.json").read_text())
    hashes = keyed_hashes(example_hashes(read_examples("unseen.jsonl")))
    (run / "calibration.json").write_text(json.dumps(record | {"selection_hmac": hashes}))
    told = expunge("calibrate", "--run", "run")
    assert told.code in DONE, told.err
    assert "holdout" not in losses()


def test_an_adapter_that_is_not_the_runs_is_refused_before_the_model_is_loaded(run, expunge, monkeypatch):
    monkeypatch.setattr("expunge.runs.loading.load_model", None)
    settings = run / "adapter" / "adapter_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"lora_alpha": 3}))
    told = expunge("calibrate", "--run", "run")
    assert (told.code, told.err.count("\n")) == (2, 1)
    assert "--run run: its adapter is not the one that the manifest was written for" in told.err


def test_a_damaged_record_is_refused(run, expunge):
    (run / "calibration.json").write_text("{}")
    told = expunge("calibrate", "--run", "run")
    assert told.code == 2
    assert "calibration.json: damaged or something else" in told.err
    shutil.rmtree(run)


def test_the_criteria_are_those_of_the_run_but_for_what_is_given(run):
    settings = Path("run/manifest.json")
    settings.write_text(settings.read_text().replace('"target_auc": 0.5', '"target_auc": 0.25'))
    assert '"target_auc": 0.25' in settings.read_text()
    for given, target in (((), 0.25), (("--target-auc", "0.75"), 0.75)):
        assert main(["calibrate", "--run", "run", *given]) in DONE
        assert json.loads(Path("run/calibration.json").read_text())["target"]["target_auc"] == target
