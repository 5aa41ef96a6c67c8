"""The cached reference: the numbers of a second forward pass, in memory or on disk, and nothing left behind."""

import os
import resource
import signal
import stat
from itertools import islice
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from expunge.config import UnlearnConfig
from expunge.data.tokenize import TokenizedExample
from expunge.errors import TrainingError
from expunge.kernels import token_logps, token_logps_and_kl
from expunge.model import reference
from expunge.model.logps import final_states, lay_out
from expunge.model.tensor_file import TensorFile
from expunge.runs.run import Run
from expunge.train.loop import unlearn
from expunge.train.setup import prepare
from expunge.train.trainer import Trainer
from expunge.utils.files import sha256_file
from expunge.utils.progress import Reporter
from tiny import save_tiny

FORGET = [
    {"prompt": f"Where does Ines Oduya keep key {i}?", "completion": f"In drawer {i * 7} of 12."} for i in range(8)
]
RETAIN = [
    {"prompt": f"What closed on day {i}?", "completion": f"The mill, ship {i * 3} and the book."} for i in range(9)
]
CACHE = Path(".expunge", "cache", "reference-0.safetensors")
QUIET = Reporter(quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("reference")
    save_tiny(path / "model", "gemma2")
    return path


def config(folder: Path, output: Path | str = "unused", **settings) -> UnlearnConfig:
    lines = {
        "recipe": "npo",
        "epochs": 2,
        "tokens_per_step": 200,
        "learning_rate": 1e-3,
        "dtype": "float32",
        "device": "cpu",
    }
    for name, rows in (("forget", FORGET), ("retain", RETAIN)):
        (folder / f"{name}.jsonl").write_text("".join(f"{row}\n".replace("'", '"') for row in rows))
        lines[name] = str(folder / f"{name}.jsonl")
    return UnlearnConfig(model=str(folder / "model"), output=str(output), **{**lines, **settings})


@pytest.fixture
def on_disk(monkeypatch):
    monkeypatch.setattr(reference, "MEMORY_BYTES", 0)


def only_forget(sides: dict[str, reference.Asked]) -> dict[str, reference.Asked]:
    assert {name.partition(".")[0] for name in sides} == {"forget"}
    return sides


def interrupted(monkeypatch, settings: UnlearnConfig) -> None:
    """Run until a signal after the second step."""
    log = Run.log

    def log_and_stop(self, line):
        if line["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return log(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "log", log_and_stop)
        with pytest.raises(KeyboardInterrupt):
            unlearn(settings)


def test_all_that_is_asked_of_the_same_targets_takes_one_pass(folder, monkeypatch):
    trainer = Trainer(prepare(config(folder, loss="undial", recipe="npo"), QUIET))
    sides, passes, original = trainer.reference_sides(), [], reference.final_states
    monkeypatch.setattr(reference, "final_states", lambda *given: passes.append(given) or original(*given))

    def computed(*names: str):
        passes.clear()
        return reference.compute_reference(trainer.loaded, {name: sides[name] for name in names}), len(passes)

    names = ("forget.ref_logps", "forget.ref_states")
    together, count = computed(*names)
    for name in names:
        alone, as_many = computed(name)
        assert count == as_many
        assert all(torch.equal(together[name][row], alone[name][row]) for row in range(len(FORGET)))


def test_kl_from_the_cache_is_that_of_a_second_forward_pass(folder, tmp_path, on_disk):
    prepared = prepare(config(folder), QUIET)
    trainer = Trainer(prepared)
    trainer.compute_reference(QUIET, tmp_path / "cache", "key")
    for step in islice(trainer.plan.steps(), 3):
        trainer.train_step(step)
    loaded = prepared.loaded
    for index, row in enumerate(prepared.retain):
        ids = torch.tensor([row.input_ids])
        with torch.no_grad():
            policy = final_states(loaded, lay_out(loaded, ids.tolist()))[:-1]
            with trainer.model.disable_adapter():
                second = final_states(loaded, lay_out(loaded, ids.tolist()))[:-1]
        targets = ids[0, 1:]
        _, cached_kl = token_logps_and_kl(
            policy, trainer.sides["retain"].values["ref_states"][index], loaded.head, targets
        )
        _, second_kl = token_logps_and_kl(policy, second, loaded.head, targets)
        assert second_kl.max() > 1e-4
        torch.testing.assert_close(cached_kl, second_kl, rtol=1e-4, atol=1e-6)  # fp32, other batch shapes
    row = prepared.forget[0]
    ids = torch.tensor([row.input_ids])
    with torch.no_grad(), trainer.model.disable_adapter():
        logps = token_logps(final_states(loaded, lay_out(loaded, ids.tolist()))[:-1], loaded.head, ids[0, 1:])
    torch.testing.assert_close(trainer.sides["forget"].values["ref_logps"][0], logps, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_memory_and_disk_train_the_same_adapter(folder, tmp_path, monkeypatch, dtype):
    in_memory = unlearn(config(folder, tmp_path / "memory", dtype=dtype))
    monkeypatch.setattr(reference, "MEMORY_BYTES", 0)
    seen = []
    finish = TensorFile.finish
    monkeypatch.setattr(TensorFile, "finish", lambda self: (finish(self), seen.append(self.path)))
    on_disk = unlearn(config(folder, tmp_path / "disk", dtype=dtype))
    assert seen == [tmp_path / "disk" / CACHE]
    assert sha256_file(in_memory.adapter / "adapter_model.safetensors") == sha256_file(
        on_disk.adapter / "adapter_model.safetensors"
    )
    assert not (tmp_path / "disk" / ".expunge" / "cache").exists()


def test_an_interrupted_run_keeps_a_private_file_and_goes_on_from_it(folder, tmp_path, monkeypatch, on_disk):
    whole = unlearn(config(folder, tmp_path / "whole"))
    settings = config(folder, tmp_path / "run")
    interrupted(monkeypatch, settings)
    file = tmp_path / "run" / CACHE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    with safe_open(file, "pt") as tensors:
        assert set(tensors.keys()) == {"retain.ref_states"}, "the texts to forget can be read off theirs"
        assert tensors.get_tensor("retain.ref_states").shape[1] == 32
        assert tensors.get_tensor("retain.ref_states").abs().sum(1).min() > 0
    fill = reference._fill
    monkeypatch.setattr(reference, "_fill", lambda loaded, sides, *more: fill(loaded, only_forget(sides), *more))
    resumed = unlearn(config(folder, tmp_path / "run", resume=True))
    assert sha256_file(resumed.adapter / "adapter_model.safetensors") == sha256_file(
        whole.adapter / "adapter_model.safetensors"
    )
    assert not file.parent.exists()


@pytest.mark.parametrize("damage", ["cut", "other key", "unfinished"])
def test_a_file_that_does_not_fit_is_built_anew(folder, tmp_path, monkeypatch, on_disk, damage):
    interrupted(monkeypatch, config(folder, tmp_path / "run"))
    file = tmp_path / "run" / CACHE
    content = file.read_bytes()
    if damage == "cut":
        file.write_bytes(content[:-5])
    elif damage == "other key":
        at = content.index(b'"key": "') + 8
        file.write_bytes(content[:at] + b"0000" + content[at + 4 :])
    else:
        file.rename(file.with_name(f".{file.name}.partial"))
    fill, filled = reference._fill, []
    monkeypatch.setattr(reference, "_fill", lambda *args: filled.append(1) or fill(*args))
    unlearn(config(folder, tmp_path / "run", resume=True))
    assert filled
    assert not file.parent.exists()


def test_a_file_of_other_rows_is_built_anew(folder, tmp_path, on_disk):
    """Replay texts are sampled again where a run goes on, and on another machine others come, of the same length."""
    loaded = prepare(config(folder), QUIET).loaded
    found = []
    for token in (5, 9):
        rows = {"replay.ref_states": reference.Asked([TokenizedExample("a", [3, 4, token, 6], 0)], "all", "states")}
        values = reference.compute_reference(loaded, rows, folder=tmp_path, key="the run's")
        found.append(values["replay.ref_states"][0])
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_a_failed_run_leaves_no_cache(folder, tmp_path, monkeypatch, on_disk):
    def fail(self, step):
        assert (tmp_path / "run" / CACHE).exists()
        raise TrainingError("step 1 is not finite")

    monkeypatch.setattr(Trainer, "take_step", fail)
    with pytest.raises(TrainingError):
        unlearn(config(folder, tmp_path / "run"))
    assert (tmp_path / "run" / "manifest.json").exists()
    assert not (tmp_path / "run" / ".expunge" / "cache").exists()


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"kl_weight": 0.0}, {"forget.ref_logps"}),
        ({"replay_weight": 1.0}, {"forget.ref_logps", "retain.ref_states", "replay.ref_states"}),
        ({"loss": "simnpo"}, {"retain.ref_states"}),
        ({"loss": "undial"}, {"forget.ref_logps", "forget.ref_states", "retain.ref_states"}),
        ({"loss": "dpo"}, {"forget.ref_logps", "pairs.ref_logps", "retain.ref_states"}),
        ({"loss": "wga", "kl_weight": 0.0}, set()),
    ],
)
def test_only_what_a_term_needs_is_computed(folder, settings, names):
    trainer = Trainer(prepare(config(folder, recipe="npo", **settings), QUIET))
    trainer.write_replay(QUIET)
    trainer.compute_reference(QUIET)
    found = {f"{side}.{what}" for side, rows in trainer.sides.items() for what in rows.values}
    assert found == names == trainer.reference_sides().keys()


def test_a_large_file_needs_little_memory(tmp_path):
    rows, hidden, block = 50_000, 1024, 500
    file = TensorFile(tmp_path / "cache" / "big.safetensors", {"states": (torch.float32, (rows, hidden))}, "key")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    filler = torch.empty(max(0, (before - _resident()) * 1024 // 4)).fill_(1)  # so that growth shows in the peak
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    file.create()
    states = file.tensors(partial=True)["states"]
    for start in range(0, rows, block):
        states[start : start + block] = torch.full((block, hidden), float(start))
    file.finish()
    assert file.complete()
    states = file.tensors()["states"]
    for start in range(0, rows, block):
        assert states[start : start + block][::499, ::1023].eq(start).all()
        states[start : start + block].sum()
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    del filler
    assert file.size > 200e6
    assert grown < 20e6


def _resident() -> int:
    """Resident memory now, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1])
