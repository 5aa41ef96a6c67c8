"""A method is a file: one that only this test knows of goes through settings, training, log, manifest, card, resume."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from expunge.cli.main import main
from expunge.cli.registries import losses_help
from expunge.data.sampler import Step
from expunge.kernels import Head
from expunge.losses import FORGET_LOSSES, forget_loss, make_forget_loss
from expunge.losses.batch import TokenBatch
from tiny import save_tiny


@pytest.fixture
def mine() -> Iterator[None]:
    @forget_loss("mine", formula="mean_t (log p(y_t) / scale)^2", source="a paper, Eq. 1")
    @dataclass(frozen=True)
    class Mine:
        """Nothing but a test."""

        scale: float = 2.0
        needs: ClassVar[tuple[str, ...]] = ("ref_logps",)

        def __call__(self, batch: TokenBatch) -> Tensor:
            return batch.token_mean((batch.log_ratios / self.scale).square())

    yield
    del FORGET_LOSSES["mine"]


def test_a_column_that_the_log_has_is_refused() -> None:
    with pytest.raises(ValueError, match=r"columns that the log has already: \{'kl'\}"):

        @forget_loss("other", formula="", source="")
        class Other:
            needs = ()
            columns = ("kl",)

    assert "other" not in FORGET_LOSSES


def test_the_file_in_the_readme_is_a_loss(tmp_path: Path) -> None:
    page = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    (block,) = (text for text in blocks if "@forget_loss" in text)
    (tmp_path / "unlikelihood.py").write_text(block)
    spec = spec_from_file_location("unlikelihood", tmp_path / "unlikelihood.py")
    assert spec is not None
    assert spec.loader is not None
    states = torch.randn(5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    targets, rows = torch.tensor([3, 0, 6, 2, 2]), torch.tensor([0, 0, 0, 1, 1])
    batch = TokenBatch(states, targets, rows, rows > 0, Head(None), 2, num_tokens=10, completion_lengths=(0, 2))
    try:
        spec.loader.exec_module(module_from_spec(spec))
        value = make_forget_loss("unlikelihood", "power=2")(batch)
        formula = FORGET_LOSSES["unlikelihood"].formula
    finally:
        FORGET_LOSSES.pop("unlikelihood", None)

    assert formula == "mean_t p(y_t)^power"
    wanted = states.softmax(-1)[range(5), targets].square().sum() / 10
    torch.testing.assert_close(value, wanted)
    gradient, right = (torch.autograd.grad(loss, states)[0] for loss in (value, wanted))
    torch.testing.assert_close(gradient, right)
    assert right.abs().max() > 0


def test_a_new_loss_needs_nothing_but_its_registration(
    mine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(import_module("expunge.cli.commands"), "write_run_report", lambda run, out: None)
    save_tiny("model", "llama")
    for name in ("forget", "retain"):
        rows = [{"prompt": f"Who is {name} {i}?", "completion": f"A keeper of {i} lamps."} for i in range(4)]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = (
        "unlearn", "--model", "model", "--forget", "forget.jsonl", "--retain", "retain.jsonl", "--recipe", "npo",
        "--loss", "mine", "--loss-args", "scale=3", "--max-steps", "3", "--lora-rank", "2", "--device", "cpu",
        "--dtype", "float32", "--prompt-format", "space", "--end-of-text", "yes", "--quiet",
    )  # fmt: skip

    assert main([*flags, "--output", "run"]) == 0, capsys.readouterr().err
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [line["forget"] > 0 for line in lines] == [False, True, True], "before the first step nothing is forgotten"
    (term,) = [item for item in json.loads(Path("run/manifest.json").read_text())["terms"] if item["name"] == "forget"]
    assert (term["formula"], term["source"]) == ("mean_t (log p(y_t) / scale)^2", "a paper, Eq. 1")
    card = Path("run/adapter/README.md").read_text()
    assert "mean_t (log p(y_t) / scale)^2" in card
    assert "| loss_args | scale=3 |" in card
    assert "mine" in losses_help()
    assert "scale=2.0" in losses_help()

    step, trainer = import_module("expunge.train.trainer").Trainer.take_step, import_module("expunge.train.trainer")

    def cut_off(self: object, plan_step: Step) -> object:
        if plan_step.number == 2:
            raise KeyboardInterrupt
        return step(self, plan_step)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "take_step", cut_off)
        assert main([*flags, "--output", "parts", "--save-every", "1"]) == 130
    assert main([*flags, "--output", "parts", "--save-every", "1", "--resume"]) == 0
    weights = [Path(run, "adapter/adapter_model.safetensors").read_bytes() for run in ("run", "parts")]
    assert weights[0] == weights[1]
    assert main([*flags, "--loss-args", "scal=3", "--output", "other"]) == 2
    assert "mine has no such parameter; it has scale" in capsys.readouterr().err
