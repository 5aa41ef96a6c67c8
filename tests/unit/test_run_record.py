"""What a run has recorded is checked as a whole, and its adapter is known by everything that it computes with."""

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from expunge.config import EvaluateConfig
from expunge.errors import DataError, ModelError, RunError
from expunge.evaluation import run as evaluation
from expunge.evaluation.results import read_results
from expunge.evaluation.values_file import read_values_file
from expunge.report.judge import verdict
from expunge.report.run_data import read_run, read_values
from expunge.runs import checkpoints
from expunge.runs.reads import check_unchanged, model_folders, model_state
from expunge.runs.record import adapter_fingerprint, check_adapter_kept, merged_from, read_manifest, read_steps
from expunge.utils.reading import NUMBER, Each, UnreadableError, check_fields
from report_runs import write_run
from tiny import save_tiny

SETTINGS = {
    "base_model_name_or_path": "base", "lora_alpha": 4.0, "r": 2, "rank_pattern": {}, "alpha_pattern": {},
    "target_modules": ["q_proj", "v_proj"], "use_rslora": False, "peft_version": "0.21.2", "inference_mode": True,
}  # fmt: skip


def adapter(folder: Path, *, weight: float = 1.0, **settings: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"w": torch.full((2, 2), weight)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(SETTINGS | settings))
    return folder


CHANGES: dict[str, Any] = {
    "lora_alpha": 4.5,
    "r": 1,
    "rank_pattern": {"q_proj": 1},
    "alpha_pattern": {"q_proj": 8},
    "target_modules": ["q_proj"],
    "exclude_modules": ["v_proj"],
    "layers_to_transform": [0],
    "use_rslora": True,
    "use_dora": True,
    "fan_in_fan_out": True,
    "modules_to_save": ["lm_head"],
    "init_lora_weights": "pissa",
    "bias": "all",
    "weight": 2.0,
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changes_what_an_adapter_computes_changes_its_fingerprint(name: str, tmp_path: Path) -> None:
    one, other = adapter(tmp_path / "one"), adapter(tmp_path / "other", **{name: CHANGES[name]})
    assert adapter_fingerprint(one) != adapter_fingerprint(other)


def test_what_changes_nothing_of_it_does_not(tmp_path: Path) -> None:
    one = adapter(tmp_path / "one")
    other = adapter(
        tmp_path / "other", lora_alpha=4, target_modules=["v_proj", "q_proj"], base_model_name_or_path="elsewhere",
        peft_version="0.17.0", inference_mode=False, new_in_peft=None,
    )  # fmt: skip
    assert adapter_fingerprint(one) == adapter_fingerprint(other)


def test_ranks_of_its_own_and_a_base_of_its_own_belong_to_an_adapter(tmp_path: Path) -> None:
    prints = {adapter_fingerprint(adapter(tmp_path / "run"))}
    adapter(tmp_path / "run/own")
    prints.add(adapter_fingerprint(tmp_path / "run"))
    (tmp_path / "run/base").mkdir()
    (tmp_path / "run/base/config.json").write_text("{}")
    prints.add(adapter_fingerprint(tmp_path / "run"))
    assert len(prints) == 3


def recorded_run(tmp_path: Path) -> Path:
    """A run with an adapter, calibrated to half of its scale."""
    folder = adapter(tmp_path / "run/adapter", lora_alpha=2.0)
    shutil.move(folder, tmp_path / "adapter")
    (tmp_path / "run").rmdir()
    selection = {"stopped": "it has settled", "best_step": 3, "scale": 0.5, "verdict": "good"}
    known = {"adapter_fingerprint": adapter_fingerprint(tmp_path / "adapter"), "selection": selection}
    run = write_run(tmp_path / "run", scored=False, manifest={**known, "adapter_sha256": None})
    manifest = json.loads((run / "manifest.json").read_text())
    del manifest["adapter_sha256"]
    (run / "manifest.json").write_text(json.dumps(manifest))
    shutil.move(tmp_path / "adapter", run / "adapter")
    (run / "calibration.json").write_text(json.dumps({"scale": 0.5, "trained_alpha": 4.0, "selection_hmac": []}))
    return run


def test_a_run_whose_adapter_was_edited_is_refused(tmp_path: Path) -> None:
    run = recorded_run(tmp_path)
    assert read_run(run).calibration["scale"] == 0.5
    adapter(run / "adapter", lora_alpha=3.0)
    for read in (read_run, verdict, lambda folder: check_adapter_kept(folder, read_manifest(folder / "manifest.json"))):
        with pytest.raises(RunError, match="its adapter is not the one that the manifest was written for"):
            read(run)


@pytest.mark.parametrize("changed", [{"scale": 0.6}, {"trained_alpha": 8.0}])
def test_a_calibration_of_another_scale_is_refused(changed: dict[str, float], tmp_path: Path) -> None:
    run = recorded_run(tmp_path)
    file = run / "calibration.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(RunError, match=r"calibration\.json is not of the adapter that is there"):
        read_run(run)


MANIFESTS: dict[str, Any] = {
    "losses that are text": {"loss_nats_per_completion_token": {"forget": {"before": "1", "after": "2"}}},
    "losses that are lists": {"loss_nats_per_completion_token": {"forget": [1, 2]}},
    "half of a loss": {"loss_nats_per_completion_token": {"forget": {"before": 1.0}}},
    "a loss that is infinite": {"loss_nats_per_completion_token": {"forget": {"before": float("inf"), "after": 1}}},
    "rows that are text": {"rows": {"forget": "60"}},
    "no rows": {"rows": {}},
    "steps that are true": {"steps": True},
    "no steps": {"steps": None},
    "a term without a weight": {"terms": [{"name": "forget", "formula": "x", "source": "y"}]},
    "a warning that is a number": {"warnings": [1]},
    "a doubt that is text": {"unseen_doubts": "many"},
    "times that are text": {"training_seconds": "fast"},
    "a step that is text": {"selection": {"stopped": "x", "best_step": "7", "scale": 1.0, "verdict": "y"}},
    "a limit that is text": {"settings": {"model": "m", "max_steps": "120"}},
    "a criterion that is text": {"settings": {"model": "m", "min_retain": "all"}},
    "a file that is a number": {"settings": {"model": "m", "forget": 5}},
    "no model": {"settings": {}},
    "two seeds": {"start": {"output": "o", "seed": 7}},
    "two devices": {"start": {"output": "o", "device": "cuda:1"}},
    "a hash that is a number": {"model_sha256": 1},
    "hashes of data that are numbers": {"data": {"forget": 1}},
    "versions that are lists": {"versions": {"expunge": ["1"]}},
    "a prompt format that is text": {"prompt_format": "space"},
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_manifest_with_a_field_of_another_kind_is_refused(name: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", scored=False, steps=2)
    file = run / "manifest.json"
    content = json.loads(file.read_text()) | MANIFESTS[name]
    file.write_text(json.dumps(content))
    with pytest.raises(RunError, match=r"manifest\.json: damaged") as refused:
        read_run(run)
    assert "\n" not in str(refused.value)


def test_of_a_device_the_start_may_say_which(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", scored=False, steps=2, settings={"device": "cuda"})
    file = run / "manifest.json"
    start = {"output": str(run), "seed": 0, "device": "cuda:1"}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"start": start}))
    assert read_manifest(file)["start"] == start


@pytest.mark.parametrize(
    "line", ['{"step": "1"}', '{"loss": 1.0}', "[1]", '{"step": 1, "tokens": "many"}', '{"step": true}']
)
def test_a_log_with_a_line_of_another_kind_is_refused(line: str, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"step": 1, "loss": 2.0}\n' + line + "\n")
    with pytest.raises(RunError, match="line 2 is damaged"):
        list(read_steps(file))


@pytest.mark.parametrize(
    "changed",
    [
        {"model": 1}, {"settings": []}, {"fingerprint": {"adapter": 3}}, {"fingerprint": {"data": {"forget": None}}},
        {"reference": {"indistinguishable": {"loss_ks_p": "no"}}}, {"reference": [1]}, {"not_measured": "nothing"},
        {"versions": {"torch": 2}}, {"before": [1]}, {"before": {"retain/probability": 0.1}},
        {"before": {"retain/probability": {"low": "no"}}}, {"reference": {"rows": {"loss_ks_p": "many"}}},
    ],
)  # fmt: skip
def test_results_with_a_field_of_another_kind_are_refused(changed: dict[str, Any], tmp_path: Path) -> None:
    file = write_run(tmp_path / "run", rows=4, steps=1) / "results_after.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changed))
    with pytest.raises(DataError, match=r"results_after\.json: field"):
        read_results(file)


def test_values_of_rows_that_are_no_text_are_refused(tmp_path: Path) -> None:
    bad = pa.array([b"\xff"], pa.binary()).view(pa.string())
    columns = {name: bad if name == "id" else pa.array(["a"]) for name in ("id", "set", "task", "document", "metric")}
    file = tmp_path / "values.parquet"
    pq.write_table(pa.table({**columns, "value": pa.array([1.0])}), file)
    for read in (read_values, read_values_file):
        with pytest.raises(DataError, match=r"values\.parquet: "):
            read(file)


def test_a_merged_model_is_known_by_its_note_until_it_is_changed(tmp_path: Path) -> None:
    assert merged_from(str(tmp_path), "weights") is None
    note = {"files": [], "adapter_fingerprint": "adapter", "merged_sha256": "weights", "model_sha256": "base"}
    (tmp_path / "expunge_merge.json").write_text(json.dumps(note))
    assert merged_from(str(tmp_path), "weights") == "adapter"
    assert merged_from(str(tmp_path), "weights", "model_sha256") == "base"
    assert merged_from(str(tmp_path), "other weights") is None


@pytest.mark.parametrize(
    ("content", "kinds", "says"),
    [
        ({}, {"a": int}, "a must be there"),
        ({"a": True}, {"a": int}, "a must be int"),
        ({"a": float("nan")}, {"a": NUMBER}, "a must be int or float"),
        ({"a": {"b": {"c": 1}}}, {"a": Each({"c": str})}, "a.*.c must be str"),
        ({"a": [1, "2"]}, {"a": [int]}, "an entry of a must be int"),
        ({"a": None}, {"a?": int}, "a must be int"),
    ],
)
def test_kinds_go_as_deep_as_the_fields(content: dict[str, Any], kinds: dict[str, Any], says: str) -> None:
    with pytest.raises(UnreadableError) as found:
        check_fields(content, kinds)
    assert str(found.value) == says
    check_fields({"a": {"b": {"c": "d"}}, "e": [1]}, {"a": Each({"c": str}), "e": [int], "f?": int})


def test_a_checkpoint_belongs_to_the_log_of_its_steps(tmp_path: Path) -> None:
    log = [b"1\n", b"2\n", b"3\n"]
    checkpoints.save(tmp_path, {"w": torch.ones(2)}, log=log[:2], step=2, fingerprint="run")
    told: list[str] = []
    newest = partial(checkpoints.newest, tmp_path, fingerprint="run", warn=told.append)
    step, tensors = newest(log)
    assert (step, tensors["w"].tolist()) == (2, [1.0, 1.0])
    assert newest(log[:1]) == (0, {})  # the log has lost a step
    with pytest.raises(RunError, match=r"metrics\.jsonl is not the log that .* was saved with"):
        newest([b"1\n", b"two\n"])
    with pytest.raises(RunError, match="is a checkpoint of another run"):
        newest(log, fingerprint="other")
    assert not told
    state = next(tmp_path.glob("step-*")) / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    assert newest(log) == (0, {})
    assert told == [f"--resume: {state.parent} is damaged and passed over: an earlier state is gone on from"]


def test_a_model_that_was_changed_while_it_was_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = model_state(str(tmp_path), None)
    check_unchanged(before, str(tmp_path), None)
    (tmp_path / "config.json").write_text('{"a": 1}')
    with pytest.raises(ModelError, match="its files were changed while they were read"):
        check_unchanged(before, str(tmp_path))


def test_what_lies_beside_a_gguf_file_is_no_part_of_the_model(tmp_path: Path) -> None:
    """A log, texts that `elicit` writes, a merged model."""
    file = tmp_path / "small.gguf"
    file.write_bytes(b"GGUF 1")
    before = model_state(str(file))
    (tmp_path / "log.txt").write_text("step 1")
    check_unchanged(before, str(file))
    assert model_folders(str(file)) == [file]
    file.write_bytes(b"GGUF of another size")
    with pytest.raises(ModelError, match="its files were changed while they were read"):
        check_unchanged(before, str(file))


def test_a_base_that_changes_while_evaluate_loads_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tiny(tmp_path / "model", "llama")
    (tmp_path / "forget.jsonl").write_text('{"prompt": "Who?", "completion": "A keeper of lamps."}\n')
    load = evaluation.load_model

    def changes(name: str, **options: Any) -> Any:
        loaded = load(name, **options)
        (tmp_path / "model" / "config.json").write_text((tmp_path / "model" / "config.json").read_text() + " ")
        return loaded

    monkeypatch.setattr(evaluation, "load_model", changes)
    config = EvaluateConfig(
        model=str(tmp_path / "model"), benchmark="custom", forget=str(tmp_path / "forget.jsonl"), device="cpu",
        output=str(tmp_path / "out.json"),
    )  # fmt: skip
    with pytest.raises(ModelError, match="its files were changed while they were read"):
        evaluation.evaluate(config)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["forget.jsonl", "model"]
