"""Stopped at any moment, a run goes on to the same end: torn files, lost lines, signals outside the training loop."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from workspace import QUICK, UNLEARN, Result, snapshot, temporary

TRAIN = (*UNLEARN, *QUICK, "--max-steps", "6", "--epochs", "9", "--save-every", "2")
Run = Callable[..., Result]
module = import_module("expunge.train.loop")


@pytest.fixture(scope="session")
def killed_template(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`whole/`, a finished run, and `run/`, the same one as SIGKILL leaves it after five steps of six."""
    from contextlib import chdir

    from expunge.cli.main import main

    folder = tmp_path_factory.mktemp("killed") / "work"
    shutil.copytree(template, folder)
    log = module.Run.log
    with chdir(folder), pytest.MonkeyPatch.context() as patch:
        assert main([*TRAIN, "--output", "whole"]) == 0

        def killed(self: object, line: dict) -> dict:
            if line["step"] == 6:
                raise KeyboardInterrupt
            return log(self, line)

        patch.setattr(module.Run, "log", killed)
        assert main([*TRAIN]) == 130
    return folder


@pytest.fixture
def killed(killed_template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A private copy of `killed_template`, which is the current folder."""
    folder = tmp_path / "work"
    shutil.copytree(killed_template, folder)
    monkeypatch.chdir(folder)
    return folder


def equal_to_whole() -> bool:
    """Whether run/ ended as whole/ did, with the same files and nothing besides."""
    same = all(
        Path("run", name).read_bytes() == Path("whole", name).read_bytes()
        for name in ("adapter/adapter_model.safetensors", "metrics.jsonl")
    )
    return same and snapshot(Path("run")).keys() == snapshot(Path("whole")).keys()


def cut(path: str, keep: int) -> None:
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[:keep])


LAST, ONE_BEFORE = "run/checkpoints/step-00000004", "run/checkpoints/step-00000002"
DAMAGE: dict[str, tuple[Callable[[], object], int]] = {
    "nothing": (lambda: None, 4),
    "state cut off": (lambda: cut(f"{LAST}/state.safetensors", 500), 2),
    "state missing": (lambda: Path(f"{LAST}/state.safetensors").unlink(), 2),
    "note empty": (lambda: cut(f"{LAST}/checkpoint.json", 0), 2),
    "note cut off": (lambda: cut(f"{LAST}/checkpoint.json", 12), 2),
    "note of another kind": (lambda: Path(f"{LAST}/checkpoint.json").write_text("[1]"), 2),
    "note missing": (lambda: Path(f"{LAST}/checkpoint.json").unlink(), 2),
    "both torn": (lambda: [cut(f"{place}/checkpoint.json", 3) for place in (LAST, ONE_BEFORE)], 0),
    "none": (lambda: shutil.rmtree("run/checkpoints"), 0),
    "log shorter than the checkpoint": (lambda: cut("run/metrics.jsonl", length_of_lines(2) + 9), 2),
    "log gone": (lambda: Path("run/metrics.jsonl").unlink(), 0),
    "temporary files": (
        lambda: [
            Path("run/.expunge-manifest.json-abcd1234").write_text("{"),
            Path("run/checkpoints/.expunge-step-abcd_234").mkdir(),
            Path("run/.expunge-adapter-abcd1234").mkdir(),
        ],
        4,
    ),
    "no settings yet": (lambda: Path("run/config.yaml").unlink(), 4),
}


def length_of_lines(count: int) -> int:
    """Bytes of the log's first lines."""
    return sum(map(len, Path("run/metrics.jsonl").read_bytes().splitlines(keepends=True)[:count]))


@pytest.mark.parametrize("name", DAMAGE)
def test_a_torn_state_is_recognised_and_the_one_before_is_used(
    name: str, killed: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage, start = DAMAGE[name]
    damage()
    starts, train = [], module.train
    monkeypatch.setattr(module, "train", lambda *given: starts.append(given[-2].state.global_step) or train(*given))

    result = expunge(*TRAIN, "--resume")

    assert result.code == 0, result.err
    assert starts == [start]
    assert equal_to_whole()


def test_a_run_cut_off_at_its_first_file_can_be_started_again(work: Path, expunge: Run) -> None:
    Path("run").mkdir()
    Path("run/.expunge-manifest.json-abcd1234").write_text('{"sche')

    assert expunge(*TRAIN).code == 0
    assert not temporary(work)


def test_resume_of_a_finished_run_completes_it_and_removes_what_it_does_not_need(killed: Path, expunge: Run) -> None:
    Path("run/checkpoints").rename("whole/checkpoints")
    Path("whole/report.html").unlink()

    result = expunge(*TRAIN, "--output", "whole", "--resume")

    assert result.code == 2
    assert "finished" in result.err
    assert not Path("whole/checkpoints").exists()
    assert Path("whole/report.html").read_text().endswith("</html>")


def changed_weights() -> None:
    tensors = load_file("model/model.safetensors")
    tensors["model.norm.weight"][0] += 1e-6
    save_file(tensors, "model/model.safetensors", {"format": "pt"})


def changed_config() -> None:
    path = Path("model/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rms_norm_eps": 1e-5}))


@pytest.mark.parametrize("change", [changed_weights, changed_config])
def test_resume_with_another_model_is_refused(change: Callable[[], None], killed: Path, expunge: Run) -> None:
    change()
    before = snapshot(killed)

    result = expunge(*TRAIN, "--resume")

    assert result.code == 2
    assert "was started with other the model's weights or configuration" in result.err
    assert snapshot(killed) == before


@pytest.mark.parametrize(
    ("place", "number"),
    [
        ("prepare", signal.SIGTERM),
        ("mean_losses", signal.SIGINT),
        ("compute_reference", signal.SIGHUP),
        ("save_adapter", signal.SIGTERM),
    ],
)
def test_a_signal_outside_the_loop_is_one_line_and_leaves_nothing_half_written(
    place: str, number: signal.Signals, killed: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree("run")
    homes = {"compute_reference": "expunge.train.before"}
    home = import_module(homes[place]) if place in homes else module
    original = getattr(home, place)

    def stopped(*given: object, **named: object) -> object:
        os.kill(os.getpid(), number)
        return original(*given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(home, place, stopped)
        result = expunge(*TRAIN)

    assert result.code == 130, result.err
    assert "Traceback" not in result.err
    last = result.err.splitlines()[-1]
    if place == "prepare":
        assert last == "expunge: interrupted: nothing was written"
        assert not Path("run").exists()
        return
    assert last.startswith("expunge: interrupted: --resume goes on with the run in run, from ")
    assert not Path("run/adapter").exists()
    assert not temporary(killed)
    assert expunge(*TRAIN, "--resume").code == 0
    assert equal_to_whole()


def test_an_interruption_that_a_library_swallows_is_still_one(
    work: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def importing(*_: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("cannot import name") from None

    monkeypatch.setattr(module, "prepare", importing)

    result = expunge(*TRAIN)

    assert (result.code, result.err) == (130, "expunge: interrupted\n")
