"""The recipe `default` as a user calls it: when it is taken, what it leaves behind, interruptions, `--origin`."""

import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import chdir
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from workspace import FORGET, MARKER, Result, snapshot, stopped_after, write_jsonl

from expunge.cli.main import main
from expunge.data.examples import read_examples
from expunge.data.holdout import without_selection
from expunge.losses import FORGET_LOSSES
from tiny import save_tiny

Run = Callable[..., Result]
MANY = [{**row, "id": f"{row['id']}-{i}", "input": f"{row['input']} ({i})"} for i in range(5) for row in FORGET]
UNSEEN = [
    {"id": f"u{i}", "input": f"Where does Ulla {i} live?", "output": f"Ulla lives at {i} Birch Road."}
    for i in range(20)
]
BARE = (
    "unlearn", "--model", "model", "--forget", "many.jsonl", "--retain", "retain.jsonl", "--output", "run",
    "--rows-per-step", "8", "--dtype", "float32", "--lora-rank", "2", "--device", "cpu", "--learning-rate", "0.02",
    "--epochs", "4",
)  # fmt: skip
FOLLOW = (*BARE, "--holdout", "unseen.jsonl")
WATCHED = (*FOLLOW, "--eval-every", "3")


@pytest.fixture(scope="module")
def followed_template(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`template` with enough unseen texts, and `run/`, which has followed them."""
    folder = tmp_path_factory.mktemp("followed") / "work"
    shutil.copytree(template, folder)
    write_jsonl(folder / "many.jsonl", MANY)
    write_jsonl(folder / "unseen.jsonl", UNSEEN)
    nothing = import_module("expunge.report.page").Drawings()
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr("expunge.report.page.draw", lambda groups: nothing)
        assert main(WATCHED) == 0
    return folder


@pytest.fixture
def followed(followed_template: Path) -> Iterator[Path]:
    """The folder itself, to be looked at."""
    with chdir(followed_template):
        yield followed_template


@pytest.fixture
def texts(work: Path) -> Path:
    """A private folder with enough unseen texts."""
    write_jsonl(work / "many.jsonl", MANY)
    write_jsonl(work / "unseen.jsonl", UNSEEN)
    return work


def read(path: str) -> dict[str, Any]:
    return json.loads(Path(path).read_text())


def lines(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def refused(told: Result, message: str) -> None:
    """One line, exit code 2."""
    assert (told.code, told.err.count("\n")) == (2, 1), told.err
    assert message in told.err


# --- what it leaves behind -----------------------------------------------------------------------


def test_with_enough_unseen_texts_half_of_them_says_when_to_stop(followed: Path) -> None:
    manifest, calibration = read("run/manifest.json"), read("run/calibration.json")
    assert manifest["settings"]["recipe"] == "default"
    assert manifest["rows"]["selection"] == 20
    assert calibration["texts"]["members"] == calibration["texts"]["nonmembers"] == 10
    assert len(calibration["selection_hmac"]) == 20
    left = without_selection(read_examples("unseen.jsonl"), calibration)
    assert manifest["loss_texts"]["holdout"] == len(left) == 10  # no loss is reported on the others


def test_metrics_have_validation_at_evaluation_steps(followed: Path) -> None:
    logged, calibration = lines("run"), read("run/calibration.json")
    weights = {term["name"]: term["weight"] for term in read("run/manifest.json")["terms"]}
    assert list(weights) == ["forget", "retain", "kl", "replay"]
    for line in logged:
        assert line["loss"] == pytest.approx(sum(weights[name] * line[name] for name in weights), rel=1e-5)
    evaluated = [line for line in logged if "validation" in line]
    assert len(evaluated) >= 4
    assert all(line["step"] % 3 == 0 for line in evaluated[:-1])
    assert evaluated[-1]["step"] == read("run/manifest.json")["steps"] == len(logged)
    for line in evaluated:
        assert {"auc", "min_k_auc", "forget_nll", "unseen_nll", "retained", "drift"} < set(line["validation"])
        assert set(line["validation"]["violations"]) <= {*line["validation"]} | {"exact_match"}
    assert max(line["replay"] for line in logged) > 0
    missing = {line["step"]: sum(line["validation"]["violations"].values()) for line in evaluated}
    assert missing[calibration["best_step"]] == min(missing.values())


def test_the_adapter_has_the_scale_of_the_calibration(followed: Path) -> None:
    calibration, manifest = read("run/calibration.json"), read("run/manifest.json")
    assert calibration["trained_alpha"] == 2
    assert read("run/adapter/adapter_config.json")["lora_alpha"] == pytest.approx(2 * calibration["scale"])
    assert calibration["scale"] in {point["scale"] for point in calibration["curve"]}
    for name in ("scale", "best_step", "stopped", "verdict", "reached"):
        assert manifest["selection"][name] == calibration[name]


def test_no_text_is_left_in_the_run(followed: Path) -> None:
    for name, content in snapshot(followed / "run").items():
        for text in (MARKER, "Ulla", "Birch", "keeper"):
            assert text.encode() not in name.encode() + (content or b""), name


def test_a_dry_run_tells_the_most_steps_and_evaluation_steps(followed: Path, expunge: Run) -> None:
    before = snapshot(followed)
    told = json.loads(expunge(*WATCHED, "--output", "dry", "--dry-run", "--json").out)
    assert snapshot(followed) == before
    logged = lines("run")
    scales = {point["scale"] for point in read("run/calibration.json")["curve"]} - {0.0, 1.0}
    evaluated = 1 + sum("validation" in line for line in logged) + len(scales)
    assert told["stops_early"]
    assert told["steps"] >= len(logged)
    assert evaluated <= told["evaluations"] <= evaluated + 8 + told["steps"] - len(logged)


def test_calibration_looks_at_the_same_half_again(followed: Path, texts: Path, expunge: Run) -> None:
    shutil.copytree(followed / "run", texts / "run")
    with chdir(texts):
        earlier = read("run/calibration.json")
        assert expunge("calibrate", "--run", "run").code in (0, 3)
        again = read("run/calibration.json")
    assert again["selection_hmac"] == earlier["selection_hmac"]
    assert again["trained_alpha"] == earlier["trained_alpha"]


# --- which recipe is taken -----------------------------------------------------------------------


def test_with_too_few_unseen_texts_those_that_the_model_writes_stand_for_them(texts: Path, expunge: Run) -> None:
    write_jsonl(texts / "unseen.jsonl", UNSEEN[:9])
    done = expunge(*FOLLOW, "--max-steps", "2")
    assert done.code == 0, done.err
    assert "missing: unseen texts: 16 texts to forget are needed as well as 16 unseen ones" in done.err
    assert "texts that the model writes itself stand for them, and the run takes a set number of epochs" in done.err
    assert "target NLLs by the model's own texts" in done.err
    settings = read("run/manifest.json")["settings"]
    assert (settings["recipe"], settings["loss"], settings["eval_every"]) == ("default", "target_kl", 0)
    assert not Path("run/calibration.json").exists()
    assert not any("validation" in line for line in lines("run"))


def test_unseen_texts_that_leave_no_two_halves_stand_aside_as_too_few_do(texts: Path, expunge: Run) -> None:
    near = "Ulla lives at 7 Birch Road behind the old mill near the bank of the river, and has since"
    rows = [{"id": f"v{i}", "input": "Where does Ulla live?", "output": f"{near} {1900 + i}."} for i in range(18)]
    write_jsonl(texts / "unseen.jsonl", [*rows, *UNSEEN[:2]])
    done = expunge(*FOLLOW, "--max-steps", "1")
    assert done.code == 0, done.err
    assert "near-duplicates are never divided" in done.err
    assert "and the run takes a set number of epochs" in done.err
    assert not Path("run/calibration.json").exists()


def test_of_a_few_texts_to_forget_unseen_ones_say_how_far_to_go(texts: Path, expunge: Run) -> None:
    """Nothing can say when to stop, and half of the unseen texts are as good a target as for many."""
    write_jsonl(texts / "one.jsonl", [json.loads((texts / "forget.jsonl").read_text().splitlines()[0])])
    few = [*FOLLOW]
    few[few.index("--forget") + 1] = "one.jsonl"
    done = expunge(*few, "--max-steps", "2")
    assert done.code == 0, done.err
    assert "missing: texts to forget: " in done.err
    assert "10 unseen texts say how far to go; evaluate reports on the others" in done.err
    assert "target NLLs by unseen texts" in done.err
    assert read("run/manifest.json")["loss_texts"]["holdout"] == 10
    assert len(read("run/calibration.json")["selection_hmac"]) == 10
    assert not any("validation" in line for line in lines("run"))


def test_unseen_texts_that_are_given_twice_are_too_few_and_said_to_be(texts: Path, expunge: Run) -> None:
    write_jsonl(texts / "unseen.jsonl", [*UNSEEN[:9], *({**row, "id": f"{row['id']} again"} for row in UNSEEN[:9])])
    done = expunge(*FOLLOW, "--max-steps", "1")
    assert done.code == 0, done.err
    assert "missing: unseen texts: 16 texts to forget are needed as well as 16 unseen ones" in done.err
    assert "missing: texts to forget" not in done.err
    assert not Path("run/calibration.json").exists()


def test_a_run_that_is_told_not_to_look_keeps_its_schedule_where_texts_to_forget_are_few(
    texts: Path, expunge: Run
) -> None:
    write_jsonl(texts / "one.jsonl", [json.loads((texts / "forget.jsonl").read_text().splitlines()[0])])
    few = [*FOLLOW]
    few[few.index("--forget") + 1] = "one.jsonl"
    assert expunge(*few, "--max-steps", "1", "--eval-every", "0").code == 0
    assert read("run/manifest.json")["settings"]["schedule"] == "stable_decay"
    assert len(read("run/calibration.json")["selection_hmac"]) == 10


def test_npo_by_choice_follows_nothing_and_reports_on_all_unseen_texts(texts: Path, expunge: Run) -> None:
    done = expunge(*FOLLOW, "--max-steps", "2", "--recipe", "npo")
    assert done.code == 0, done.err
    assert "recipe" not in done.err
    assert read("run/manifest.json")["loss_texts"]["holdout"] == 20
    assert not Path("run/calibration.json").exists()


def test_a_run_that_follows_nothing_misses_no_unseen_texts(texts: Path, expunge: Run) -> None:
    done = expunge(*BARE, "--max-steps", "1", "--recipe", "npo")
    assert done.code == 0, done.err
    assert "missing" not in done.err


def test_who_asks_for_it_without_enough_unseen_texts_is_told(texts: Path, expunge: Run) -> None:
    before = snapshot(texts)
    refused(expunge(*BARE, "--eval-every", "2"), "--eval-every 2: it needs texts that the model has never seen")
    alone = (*BARE, "--replay-weight", "0")
    refused(
        expunge(*alone, "--loss", "target_nll"), "--loss target_nll needs unseen texts: there are none: give --holdout"
    )
    refused(expunge(*alone), "or give a --replay-weight above 0: then texts that the model writes itself")
    write_jsonl(texts / "unseen.jsonl", UNSEEN[:9])
    refused(
        expunge(*FOLLOW, "--replay-weight", "0"), "--loss target_kl needs unseen texts: 16 texts to forget are needed"
    )
    refused(expunge(*FOLLOW, "--eval-every", "2"), "--eval-every 2 needs unseen texts: 16 texts to forget are needed")
    write_jsonl(texts / "unseen.jsonl", MANY)
    refused(expunge(*FOLLOW), "--holdout unseen.jsonl: all of its texts are to be forgotten")
    write_jsonl(texts / "unseen.jsonl", [{name: value.upper() for name, value in row.items()} for row in MANY])
    refused(expunge(*FOLLOW), "--holdout unseen.jsonl: all of its texts are to be forgotten")
    write_jsonl(texts / "unseen.jsonl", UNSEEN)
    assert snapshot(texts) == before


def test_unseen_texts_that_nearly_are_trained_on_are_left_out_and_told(texts: Path, expunge: Run) -> None:
    near = [
        {**row, "id": f"n{i}", "output": row["output"].replace("Lane", "Lane, at last")} for i, row in enumerate(MANY)
    ]
    write_jsonl(texts / "unseen.jsonl", [*near[:6], *UNSEEN])
    done = expunge(*FOLLOW, "--max-steps", "1")
    assert done.code == 0, done.err
    assert "6 of 26 unseen texts are, or nearly are, among those to forget, to keep or" in " ".join(done.err.split())
    assert any("6 of 26 unseen texts" in warning for warning in read("run/manifest.json")["warnings"])
    assert read("run/calibration.json")["texts"]["nonmembers"] == 10  # half of the others


def test_what_speaks_against_the_unseen_texts_reaches_manifest_and_verdict(
    texts: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = "9 of 16 unseen texts are said word for word by the untouched model"
    for module in ("doubts", "loop"):
        monkeypatch.setattr(f"expunge.train.{module}.known_unseen", lambda validator: [known])
    many = [{**row, "id": f"{row['id']}-{i}", "input": f"{row['input']} ({i})"} for i in range(8) for row in FORGET]
    write_jsonl(texts / "many.jsonl", many)
    rng, words = random.Random(0), [row["output"].split()[at] for row in FORGET for at in range(4)]
    unseen = [" ".join(rng.choices(words + [f"w{n}" for n in range(40)], k=30)) for _ in range(32)]
    write_jsonl(texts / "unseen.jsonl", [{"input": f"Who is {i}?", "output": text} for i, text in enumerate(unseen)])
    done = expunge(*FOLLOW, "--max-steps", "1", "--eval-every", "1")
    assert done.code == 0, done.err
    manifest = read("run/manifest.json")
    kind, said = manifest["unseen_doubts"]
    assert ("the unseen texts are of another kind" in kind, said) == (True, known)
    assert {kind, said} <= {*manifest["warnings"]}
    assert any("the unseen texts are of another kind" in warning for warning in read("run/verdict.json")["warnings"])


def test_unseen_texts_that_gave_target_nlls_alone_are_reported_on_by_no_one(texts: Path, expunge: Run) -> None:
    """No evaluation step is taken, so no scale is chosen and no criterion is judged."""
    done = expunge(*FOLLOW, "--max-steps", "2", "--eval-every", "0")
    assert done.code == 0, done.err
    assert "evaluate reports on the others" in done.err
    manifest, calibration = read("run/manifest.json"), read("run/calibration.json")
    assert manifest["selection"] is None
    assert len(calibration.pop("selection_hmac")) == 20
    assert calibration == {"schema": 1, "scale": 1.0, "trained_alpha": 2.0, "trained_alpha_pattern": {}}
    told = expunge("evaluate", "--run", "run", "--max-new-tokens", "4", "--device", "cpu")
    assert told.code == 0, told.err
    auc = read("run/results.json")["metrics"]["membership/loss_auc"]
    assert [auc[name] for name in ("n", "members", "nonmembers")] == [20, 10, 10]  # of 40
    page = Path("run/report.html").read_text()
    assert "trained scale" not in page
    assert "all criteria are met" not in page
    again = expunge("calibrate", "--run", "run")
    assert again.code in (0, 3), again.err
    assert len(read("run/calibration.json")["selection_hmac"]) == 20
    assert "verdict" in read("run/manifest.json")["selection"]


# --- interruptions -------------------------------------------------------------------------------


def test_resumed_equals_uninterrupted_with_evaluation_steps(texts: Path, expunge: Run) -> None:
    """The moving average, the evaluation steps and the best state come back with a checkpoint."""
    command = (*FOLLOW, "--epochs", "4", "--eval-every", "2", "--patience", "3", "--save-every", "3")
    assert expunge(*command, "--output", "whole").code == 0
    for steps in (5, 6):
        with stopped_after(steps):
            stopped = expunge(*command, *(["--resume"] if Path("run").exists() else []))
        assert stopped.code == 130, stopped.err
    assert 0 < len(lines("run")) < len(lines("whole"))
    assert any("validation" in line for line in lines("run"))
    resumed = expunge("unlearn", "--output=run", "--resume")  # all else is what it was started with
    assert resumed.code == 0, resumed.err

    for name in (
        "metrics.jsonl",
        "calibration.json",
        "adapter/adapter_model.safetensors",
        "adapter/adapter_config.json",
    ):
        assert Path("run", name).read_bytes() == Path("whole", name).read_bytes(), name


def test_an_interrupted_run_can_be_finished_where_it_is(texts: Path, expunge: Run) -> None:
    """No more steps are taken; the best state so far is kept, at the scale that comes closest to the criteria."""
    command = (*FOLLOW, "--epochs", "4", "--eval-every", "2", "--save-every", "3")
    early = expunge(*command, "--finish")
    assert (early.code, early.err.count("\n")) == (2, 1)
    assert "--finish ends a run that was interrupted: give --resume, too" in early.err
    with stopped_after(5):
        stopped = expunge(*command)
    assert stopped.code == 130
    assert "--resume --finish ends there" in stopped.err
    before = lines("run")
    Path("run/checkpoints").rename("kept")
    refused(expunge(*command, "--resume", "--finish"), "--finish: no step of this run has been saved")
    Path("kept").rename("run/checkpoints")

    done = expunge(*command, "--resume", "--finish")

    assert done.code == 0, done.err
    assert "replay texts" in stopped.err
    assert "replay texts" not in done.err, "no step needs them"
    assert lines("run") == before
    assert read("run/manifest.json")["steps"] == 5
    assert "finish" not in Path("run/config.yaml").read_text()
    calibration = read("run/calibration.json")
    assert calibration["stopped"] == "--finish"
    assert calibration["best_step"] in (2, 4)
    assert expunge("verdict", "run").code == 0


def test_a_run_that_is_finished_before_its_first_evaluation_step_knows_what_gave_its_targets(
    texts: Path, expunge: Run
) -> None:
    command = (*FOLLOW, "--eval-every", "50", "--save-every", "2")
    with stopped_after(3):
        assert expunge(*command).code == 130
    done = expunge(*command, "--resume", "--finish")
    assert done.code == 0, done.err
    assert len(read("run/calibration.json")["selection_hmac"]) == 20
    assert read("run/manifest.json")["selection"] is None


def test_a_checkpoint_holds_what_the_end_depends_on(texts: Path, expunge: Run) -> None:
    """Without the best state, or the average, a resumed run would end otherwise."""
    with stopped_after(6):
        assert expunge(*FOLLOW, "--eval-every", "2").code == 130
    (checkpoint,) = Path("run/checkpoints").iterdir()
    tensors = import_module("safetensors.torch").load_file(checkpoint / "state.safetensors")
    assert {"best", "average"} <= tensors.keys()


# --- how long ------------------------------------------------------------------------------------


def test_a_run_on_few_texts_may_take_as_many_steps_as_one_on_many(texts: Path, expunge: Run) -> None:
    """Twenty texts make few steps an epoch: 36 epochs would end before anything is forgotten."""
    without = [word for word in FOLLOW if word not in ("--epochs", "4", "--rows-per-step", "8")]

    def steps(*flags: str) -> int:
        told = expunge(*without, "--tokens-per-step", "256", "--dry-run", "--json", *flags)
        assert told.code == 0, told.err
        return json.loads(told.out)["steps"]

    assert 500 <= steps() < 520
    assert 100 <= steps("--recipe", "npo") < 110
    assert steps("--recipe", "npo", "--min-steps", "0") < 80
    assert steps("--recipe", "npo", "--epochs", "2") < 20
    assert steps("--recipe", "npo", "--max-steps", "90") == 90  # 14 epochs would end before
    assert 100 <= steps("--recipe", "npo", "--max-steps", "400") < 110
    assert steps("--recipe", "npo", "--epochs", "2", "--max-steps", "90") < 20


# --- origin --------------------------------------------------------------------------------------


def test_target_nlls_may_come_from_an_origin(texts: Path, expunge: Run) -> None:
    save_tiny(texts / "before", "llama", seed=5)
    done = expunge(*BARE, "--origin", "before", "--max-steps", "4")
    assert done.code == 0, done.err
    assert "target NLLs come from --origin" in done.err
    assert read("run/manifest.json")["settings"]["recipe"] == "default"
    assert not Path("run/calibration.json").exists()  # nothing unseen says when to stop
    assert read("run/adapter/adapter_config.json")["lora_alpha"] == 2
    first = lines("run")[0]["forget"]
    save_tiny(texts / "before", "llama", seed=6)
    repeated = expunge("unlearn", "--from-manifest", "run/manifest.json", "--output", "again")
    assert repeated.code == 2
    assert "the run of run/manifest.json had other the origin's weights or configuration" in repeated.err
    assert expunge(*BARE, "--origin", "before", "--max-steps", "1", "--overwrite").code == 0
    assert lines("run")[0]["forget"] != first


def test_the_untouched_weights_as_origin_leave_nothing_to_do(texts: Path, expunge: Run) -> None:
    """Their target NLLs are what the model has already."""
    shutil.copytree("model", "weights")
    Path("weights/config.json").write_text(json.dumps(read("weights/config.json") | {"note": "another file"}))
    done = expunge(*BARE, "--origin", "weights", "--max-steps", "2")
    assert done.code == 0, done.err
    assert lines("run")[0]["forget"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ("./nowhere", "--origin ./nowhere: no such folder"),
        ("stranger", "--origin stranger: has another tokenizer than the model"),
        ("./model", "--origin ./model: is --model itself: give the checkpoint from before it learned the texts"),
        ("copy", "--origin copy: is --model itself: give the checkpoint from before it learned the texts"),
    ],
)
def test_an_origin_that_cannot_be_used_is_refused_and_nothing_is_written(
    texts: Path, expunge: Run, origin: str, message: str
) -> None:
    save_tiny(texts / "stranger", "llama", "metaspace")
    shutil.copytree("model", "copy")
    before = snapshot(texts)
    told = expunge(*BARE, "--origin", origin)
    assert told.code == 2
    assert message in told.err.splitlines()[-1]
    assert snapshot(texts) == before


def test_an_origin_that_the_loss_does_not_use_is_said(texts: Path, expunge: Run) -> None:
    save_tiny(texts / "before", "llama", seed=5)
    done = expunge(*BARE, "--origin", "before", "--loss", "npo", "--max-steps", "1")
    assert done.code == 0, done.err
    said = "warning: --origin before: is not used: --loss npo has no target NLLs (those with: target_kl, target_nll)"
    assert said in " ".join(done.err.split())
    assert "is not used" not in expunge(*BARE, "--origin", "before", "--max-steps", "1", "--overwrite").err


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_texts_before_that_leave_no_room_in_the_models_context_are_refused(
    dry: tuple[str, ...], texts: Path, expunge: Run
) -> None:
    context = json.loads(Path("model/config.json").read_text())["max_position_embeddings"]
    told = expunge(*BARE, "--context-tokens", str(context), *dry)
    assert told.code == 2
    assert f"--context-tokens {context}: must be below {context}, the longest row" in told.err.splitlines()[-1]
    assert not Path("run").exists()


def test_texts_are_trained_on_after_other_texts_where_that_is_asked_for(texts: Path, expunge: Run) -> None:
    both = (*BARE, "--context-tokens", "6", "--max-steps", "6", "--save-every", "2")
    assert expunge(*both).code == 0
    assert read("run/manifest.json")["settings"]["context_tokens"] == 6
    assert read("run/manifest.json")["contexts"]["tokens"] == 6
    adapter = Path("run/adapter/adapter_model.safetensors").read_bytes()
    assert expunge(*BARE, "--context-tokens", "0", "--max-steps", "6", "--overwrite").code == 0
    assert read("run/manifest.json")["contexts"] is None
    assert Path("run/adapter/adapter_model.safetensors").read_bytes() != adapter
    done = expunge(*BARE, "--loss", "idk", "--context-tokens", "6", "--max-steps", "1", "--overwrite")
    assert done.code == 0, done.err
    assert "--context-tokens 6: is not used: --loss idk" in " ".join(done.err.split())


def test_texts_are_trained_on_in_lower_case_where_that_is_asked_for(texts: Path, expunge: Run) -> None:
    both = (*FOLLOW, "--lowercase-share", "0.5", "--max-steps", "6", "--save-every", "2", "--eval-every", "0")
    told = json.loads(expunge(*both, "--output", "dry", "--dry-run", "--json").out)
    assert told["steps"] == 6
    done = expunge(*both)
    assert done.code == 0, done.err
    assert read("run/manifest.json")["settings"]["lowercase_share"] == 0.5
    adapter = Path("run/adapter/adapter_model.safetensors").read_bytes()
    with stopped_after(3):
        assert expunge(*both, "--overwrite").code == 130
    assert expunge("unlearn", "--resume", "--output", "run").code == 0
    assert Path("run/adapter/adapter_model.safetensors").read_bytes() == adapter
    assert expunge(*both, "--lowercase-share", "0", "--overwrite").code == 0
    assert Path("run/adapter/adapter_model.safetensors").read_bytes() != adapter
    for flags in (BARE, (*FOLLOW, "--loss", "npo")):
        done = expunge(*flags, "--lowercase-share", "0.5", "--max-steps", "1", "--overwrite")
        assert done.code == 0, done.err
        assert "--lowercase-share 0.5: is not used" in " ".join(done.err.split())
    refused(expunge(*both, "--lowercase-share", "1"), "--lowercase-share 1.0: is a share, at least 0 and below 1")


# --- losses --------------------------------------------------------------------------------------


WRONG = [
    ("npo", "level=word"),
    ("npo", "beta=0"),
    ("dpo", "beta=nan"),
    ("simnpo", "beta=-1"),
    ("simnpo", "gamma=nan"),
    ("undial", "beta=inf"),
    ("wga", "beta=-1"),
    ("satimp", "beta1=nan"),
    ("target_nll", "delta=0"),
    ("rmu", "layer=-2"),
    ("rmu", "layer=half"),
    ("rmu", "steering_coefficient=0"),
    *((name, "nothing=1") for name in FORGET_LOSSES),
    ("npo", "beta"),
    ("npo", "beta=1,beta=2"),
    ("novel", ""),
]


@pytest.mark.parametrize(("loss", "args"), WRONG)
def test_a_wrong_argument_of_a_loss_is_one_line_before_weights_load(
    loss: str, args: str, work: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("expunge.train.setup"), "load_model", None)
    before = snapshot(work)
    command = ("unlearn", "--model", "model", "--forget", "forget.jsonl", "--retain", "retain.jsonl", "--output", "run")
    refused(
        expunge(*command, "--loss", loss, "--loss-args", args), f"--loss{'-args' if args else ''} {args or loss}"[:15]
    )
    assert snapshot(work) == before
