"""Ways to break the input of a command, and what a command must do about each of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import load_file, save_file
from workspace import FORGET, MARKER, QUICK, UNLEARN, Result, snapshot

from tiny import save_tiny

TRAIN = (*UNLEARN, *QUICK)
EVALUATE = ("evaluate", "--model", "model", "--data", "data", "--output", "results.json")
SCORE = ("score", "--predictions", "predictions", "--output", "results.json")
MERGE = ("merge", "--run", "done", "--output", "merged")
SECRET = f"{MARKER} keeps a secret"


def line(number: int, text: str | bytes) -> Callable[[Path], None]:
    """Replace a line (from 1) of the forget file."""

    def change(work: Path) -> None:
        lines = (work / "forget.jsonl").read_bytes().splitlines()
        lines[number - 1] = text.encode() if isinstance(text, str) else text
        (work / "forget.jsonl").write_bytes(b"\n".join(lines) + b"\n")

    return change


def row(**changes: object) -> Callable[[Path], None]:
    """Change fields of the second row of the forget file; None takes a field away."""
    changed = {key: value for key, value in {**FORGET[1], **changes}.items() if value is not None}
    return line(2, json.dumps(changed))


def file(name: str, text: str | bytes = "") -> Callable[[Path], None]:
    """Write a file."""

    def write(work: Path) -> None:
        path = work / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)

    return write


def gone(*names: str) -> Callable[[Path], None]:
    """Remove files or folders."""

    def remove(work: Path) -> None:
        for name in names:
            path = work / name
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return remove


def setting(name: str, **changes: object) -> Callable[[Path], None]:
    """Change keys of a JSON file."""

    def change(work: Path) -> None:
        path = work / name
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def run_setting(**changes: object) -> Callable[[Path], None]:
    """Change settings in the manifest of the finished run."""

    def change(work: Path) -> None:
        path = work / "done/manifest.json"
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps(manifest | {"settings": manifest["settings"] | changes}))

    return change


def without_weight(work: Path) -> None:
    tensors = load_file(work / "model/model.safetensors")
    tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, work / "model/model.safetensors", metadata={"format": "pt"})


def pickle_only(work: Path) -> None:
    (work / "model/model.safetensors").rename(work / "model/pytorch_model.bin")


def larger_tokenizer(work: Path) -> None:
    shutil.rmtree(work / "model")
    save_tiny(work / "model", "llama", vocab_size=100)


def no_end_of_text(work: Path) -> None:
    setting("model/tokenizer_config.json", eos_token=None)(work)


def other_model(work: Path) -> None:
    shutil.rmtree(work / "model")
    save_tiny(work / "model", "llama", hidden_size=48)


def deeper_model(work: Path) -> None:
    """The adapter's weights all find a place, and one layer is left without."""
    shutil.rmtree(work / "model")
    save_tiny(work / "model", "llama", num_hidden_layers=3)
    leaves = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    setting("done/adapter/adapter_config.json", target_modules=leaves)(work)


def adapter_as_model(work: Path) -> None:
    shutil.copytree(work / "done/adapter", work / "adapter")
    setting("adapter/adapter_config.json", base_model_name_or_path="nowhere/at/all")(work)


def plain_benchmark(work: Path) -> None:
    (work / "data").mkdir()
    for name in ("forget.jsonl", "retain.jsonl"):
        shutil.copy(work / name, work / "data" / name)


def interrupted(work: Path) -> None:
    """A run that was cut off before its first checkpoint."""
    shutil.copytree(work / "done", work / "run")
    shutil.rmtree(work / "run/adapter")
    setting("run/manifest.json", status="running")(work)


def broken_predictions(work: Path) -> None:
    file("predictions/forget.jsonl", f'{{"id": "{SECRET}')(work)
    file("predictions/retain.jsonl")(work)


def organisers_predictions(work: Path) -> None:
    header = "id,task,expected_output\n"
    file("predictions/forget_0.csv", header)(work)
    file("predictions/retain_0.csv", header)(work)


Case = tuple[tuple[str, ...], str, Callable[[Path], object] | None]
"""A command, what its message must say, and how to break the current folder before."""


def check(case: Case, work: Path, expunge: Callable[..., Result], *, after_loading: bool) -> None:
    """One clear line, exit code 2, nothing written, no text of the data shown.

    Args:
        case: What to do and to expect.
        work: The folder.
        expunge: Runs a command.
        after_loading: It takes the model to see the fault, so lines about what was found may stand before the error.
    """
    arguments, phrase, prepare = case
    if prepare:
        prepare(work)
    before = snapshot(work)

    result = expunge(*arguments)

    lines = result.err.splitlines()
    assert result.code == 2, result.err
    assert [line.startswith("expunge: error: ") for line in lines].count(True) == 1, result.err
    assert lines[-1].startswith("expunge: error: ")
    assert phrase in lines[-1], lines[-1]
    assert len(lines) == 1 or after_loading, result.err
    assert result.out == ""
    assert "Traceback" not in result.err
    assert MARKER not in result.err
    assert result.err.replace("\n", "").isprintable(), repr(result.err)
    assert snapshot(work) == before
