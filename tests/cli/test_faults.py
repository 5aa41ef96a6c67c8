"""The machine is at fault: a full or read-only disk, too little memory, damaged weights. One clear line each time, and
what was good before stays good.
"""

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import chdir
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from workspace import MARKER, QUICK, UNLEARN, Result, snapshot, temporary

from expunge.cli.main import main
from expunge.model import memory

TRAIN = (*UNLEARN, *QUICK, "--max-steps", "6", "--epochs", "9", "--save-every", "2")
Run = Callable[..., Result]
module = import_module("expunge.train.loop")
run_module = import_module("expunge.runs.checkpoints")


def one_line(result: Result, phrase: str) -> None:
    """The command ended with exit code 2 and one clear line."""
    assert result.code == 2, result.err
    assert [line.startswith("expunge: error: ") for line in result.err.splitlines()].count(True) == 1
    assert phrase in result.err.splitlines()[-1]
    assert "Traceback" not in result.err
    assert MARKER not in result.err


def no_temporary_files(folder: Path) -> bool:
    return not temporary(folder)


def adapter(run: str) -> bytes:
    return Path(run, "adapter/adapter_model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(template: Path) -> tuple[bytes, bytes]:
    """Adapter and log of a run that nothing disturbs."""
    with chdir(template):
        assert main([*TRAIN, "--output", "whole"]) == 0
        found = adapter("whole"), Path("whole/metrics.jsonl").read_bytes()
        shutil.rmtree("whole")
    return found


@pytest.fixture(autouse=True)
def without_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """No report at the end of every run, which takes longer than the run."""
    monkeypatch.setattr(import_module("expunge.cli.commands"), "write_run_report", lambda run, out: None)


# --- disks ---------------------------------------------------------------------------------------


@pytest.fixture
def disk(work: Path) -> Iterator[Callable[[str], Path]]:
    """`disk("size=64k")` mounts (or changes) a file system in memory at disk/, within the current folder."""
    place = work / "disk"
    place.mkdir()

    def mount(options: str) -> Path:
        mounted = os.path.ismount(place)
        how = ["mount", "-o", f"remount,{options}"] if mounted else ["mount", "-t", "tmpfs", "-o", options, "none"]
        if shutil.which("mount") is None or subprocess.run([*how, str(place)], capture_output=True).returncode:
            pytest.skip("needs the right to mount a file system")
        return place

    yield mount
    if os.path.ismount(place):
        # Lazily: whoever still looks into it (an indexer, a process that is ending) must not fail the test.
        subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("kilobytes", [0, 4, 16, 40, 64, 80])
def test_a_full_disk_and_going_on_once_there_is_room(
    kilobytes: int, whole: tuple[bytes, bytes], work: Path, expunge: Run, disk: Callable[[str], Path]
) -> None:
    """Whatever file it is that does not fit: the manifest, the log, a checkpoint or the adapter."""
    disk("size=4m")
    Path("disk/ballast").write_bytes(bytes(4 * 2**20 - 1024 * kilobytes - 4096))

    result = expunge(*TRAIN, "--output", "disk/run")

    one_line(result, "No space left on device")
    assert no_temporary_files(work / "disk")
    assert not Path("disk/run/adapter").exists()
    Path("disk/ballast").unlink()
    resume = ["--resume"] if Path("disk/run/manifest.json").exists() else []
    assert expunge(*TRAIN, "--output", "disk/run", *resume).code == 0
    assert (adapter("disk/run"), Path("disk/run/metrics.jsonl").read_bytes()) == whole


@pytest.mark.parametrize("kilobytes", [12, 20, 28])
def test_a_disk_that_is_full_at_the_end(kilobytes: int, work: Path, expunge: Run, disk: Callable[[str], Path]) -> None:
    """Without checkpoints the adapter is the first large file; a merged model is one too."""
    disk("size=4m")
    Path("disk/ballast").write_bytes(bytes(4 * 2**20 - 1024 * kilobytes - 4096))

    result = expunge(*TRAIN, "--output", "disk/run", "--save-every", "0")
    merged = expunge("merge", "--run", "done", "--output", "disk/merged")

    one_line(result, "No space left on device")
    one_line(merged, "No space left on device")
    assert no_temporary_files(work / "disk")
    assert not Path("disk/run/adapter").exists()
    assert not Path("disk/merged").exists()


def test_a_read_only_disk_is_seen_before_anything_is_loaded(
    work: Path, expunge: Run, disk: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk("size=1m,ro")
    monkeypatch.setattr(module, "prepare", None)

    for output in ("disk/run", "disk"):
        result = expunge(*TRAIN, "--output", output)
        one_line(result, "no permission to write in")
        assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("fault", ["serializing", "renaming", "noting"])
def test_a_checkpoint_that_cannot_be_written(
    fault: str, whole: tuple[bytes, bytes], work: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one before stays, and the run goes on from it."""
    calls: list[object] = []
    owner, name = {
        "serializing": (run_module, "save_file"),
        "renaming": (run_module.folders, "replace_dir"),
        "noting": (run_module.files, "sha256_file"),
    }[fault]
    original = getattr(owner, name)

    def failing(*given: object, **named: object) -> object:
        if "step-" in str(given):
            calls.append(given)
            if len(calls) == 2:
                if fault == "serializing":
                    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
                raise OSError(28, "No space left on device")
        return original(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing)
        result = expunge(*TRAIN)

    one_line(result, "cannot write the checkpoint of step 4 (")
    assert "No space left on device" in result.err
    assert "the last good one is step-00000002" in result.err.splitlines()[-1]
    assert [path.name for path in Path("run/checkpoints").iterdir()] == ["step-00000002"]
    assert expunge(*TRAIN, "--resume").code == 0
    assert adapter("run") == whole[0]


# --- memory --------------------------------------------------------------------------------------


def test_a_model_larger_than_the_memory_is_refused_before_it_is_loaded(
    work: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 50_000)
    before = snapshot(work)

    result = expunge(*TRAIN)

    one_line(result, "is free on cpu: take a smaller model")
    assert len(result.err.splitlines()) == 1
    assert snapshot(work) == before


@pytest.mark.parametrize("dry_run", [[], ["--dry-run"]])
def test_training_that_does_not_fit_is_refused_before_anything_is_written(
    dry_run: list[str], work: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model fits, what the longest row keeps for its backward pass does not; with recomputation it does."""

    def free_once_loaded(size: int) -> None:
        calls = iter([10**9])  # the first to ask is the loading
        monkeypatch.setattr(memory, "free_memory", lambda device: next(calls, size))

    arguments = (*TRAIN, "--rows-per-step", "10")
    before = snapshot(work)
    free_once_loaded(150_000)

    result = expunge(*arguments, *dry_run)

    one_line(result, "tokens at once needs about")
    assert "give --gradient-checkpointing" in result.err
    assert snapshot(work) == before
    free_once_loaded(150_000)
    assert expunge(*arguments, "--gradient-checkpointing").code == 0


def test_predicted_activations_are_what_a_step_keeps(work: Path) -> None:
    """Against a count of the tensors of a real micro-batch, all its rows in one."""
    from expunge import UnlearnConfig
    from expunge.model.logps import final_states, lay_out
    from expunge.train.setup import prepare
    from expunge.utils.progress import Reporter

    config = UnlearnConfig(model="model", forget="forget.jsonl", retain="retain.jsonl", output="x", device="cpu")
    trainer = module.Trainer(prepare(config, Reporter(quiet=True)))
    rows = [row.input_ids for side in trainer.rows.sides.values() for row in side.rows]

    def kept(sequences: list[list[int]]) -> tuple[int, int]:
        batch = lay_out(trainer.loaded, sequences)
        return memory.saved_bytes(trainer.model, lambda: final_states(trainer.loaded, batch)), batch.input_ids.numel()

    (one, area_of_one), (all_of_them, area) = kept([max(rows, key=len)]), kept(rows)
    assert 0.8 < one * area / area_of_one / all_of_them < 1.3


MEMORY = "out of memory: take a smaller model"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"), MEMORY),
        (MemoryError(), MEMORY),
        (RuntimeError("[enforce fail] err == 0. DefaultCPUAllocator: can't allocate memory"), MEMORY),
        (PermissionError(13, "Permission denied", "theirs/manifest.json"), "theirs/manifest.json: look at whose it is"),
    ],
)
def test_what_the_surroundings_refuse_elsewhere_is_one_line(
    error: Exception, says: str, work: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(module, "prepare", fail)

    one_line(expunge(*TRAIN), says)


@pytest.mark.parametrize(
    ("kind", "dtype", "quantized", "size"),
    [
        ("F8_E4M3", None, True, 2), ("F8_E4M3", torch.float32, True, 4), ("F8_E5M2", torch.bfloat16, True, 2),
        ("U8", None, True, 4), ("U8", torch.float32, True, 8),  # MXFP4: two values in a byte
        ("U8", torch.float32, False, 1), ("BOOL", torch.float32, True, 1),  # masks, as of GPT-NeoX
        ("BF16", None, True, 2), ("BF16", torch.float32, False, 4), ("F32", None, False, 4),
    ],
)  # fmt: skip
def test_weights_are_counted_as_they_are_loaded(
    kind: str, dtype: torch.dtype | None, quantized: bool, size: int
) -> None:
    header = {"w": {"dtype": kind, "shape": [3, 5]}}
    assert memory.weight_bytes([header], dtype, quantized=quantized) == 15 * size


def test_free_memory_is_that_of_the_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUPS", ((tmp_path / "max", tmp_path / "current"),))
    everything = memory.free_memory(torch.device("cpu"))
    assert everything
    for name, text in (("max", "1000000"), ("current", "700000"), ("memory.stat", "anon 1\ninactive_file 50000\n")):
        (tmp_path / name).write_text(text)
    assert memory.free_memory(torch.device("cpu")) == 350_000
    (tmp_path / "max").write_text("max\n")
    assert memory.free_memory(torch.device("cpu")) > 350_000


# --- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight", "lm_head.weight"])
def test_weights_that_are_not_finite(name: str, value: float, work: Path, expunge: Run) -> None:
    tensors = load_file("model/model.safetensors")
    tensors[name].view(-1)[3] = value
    save_file(tensors, "model/model.safetensors", {"format": "pt"})
    before = snapshot(work)

    result = expunge(*TRAIN)

    one_line(result, f"the model's weight {name} holds values that are not finite")
    assert snapshot(work) == before
