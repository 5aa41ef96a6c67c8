"""`--shard-base`: each process holds its part of the base alone, and all else is as with one process."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dev.models import tiny
from expunge.config import EvaluateConfig
from expunge.errors import ConfigError
from expunge.evaluation.run import evaluate
from expunge.model import shard
from expunge.model.adapter import add_adapter, trainable
from expunge.model.layers import recompute_layers
from expunge.model.load import LoadedModel, load_model
from expunge.model.logps import final_states, lay_out
from expunge.model.memory import saved_bytes
from expunge.utils.distributed import Processes
from launch import COMMAND, End, largest_differences, launch
from tiny import ARCHITECTURES, save_tiny, save_tokenizer

SHARDED = (*COMMAND, "--shard-base")


@pytest.mark.parametrize(
    ("count", "prepare", "arguments"),
    [
        (2, "nothing", ()),
        (2, "last_writes_less", ()),
        (3, "nothing", ("--gradient-checkpointing",)),
    ],
)
def test_the_same_losses_and_the_same_adapter(
    count: int,
    prepare: str,
    arguments: tuple[str, ...],
    folder: Path,
    assert_same_as_one: Callable[[list[End]], None],
) -> None:
    """Five rows a step, which no number of processes divides, and one micro-batch for all rows of the reference."""
    ends = launch(count, folder, *SHARDED, *arguments, "--output", "many", prepare=prepare)

    assert len(ends) == count
    assert_same_as_one(ends)
    assert_plain_peft_reads_the_adapter(folder)


def assert_plain_peft_reads_the_adapter(folder: Path) -> None:
    ids = torch.arange(1, 30)[None]

    def logits(run: str) -> torch.Tensor:
        base = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)
        return PeftModel.from_pretrained(base, str(folder / run / "adapter")).eval()(input_ids=ids).logits

    with torch.no_grad():
        untouched = AutoModelForCausalLM.from_pretrained(folder / "model", dtype=torch.float32)(input_ids=ids).logits
        torch.testing.assert_close(logits("many"), logits("one"), atol=1e-4, rtol=0)
        assert (logits("many") - untouched).abs().max() > 0.01, "it does something"


@pytest.mark.parametrize(
    "arguments", [("--dtype", "bfloat16"), ("--target-modules", "model.layers.1.self_attn.q_proj")]
)
def test_shards_change_nothing_for_the_same_number_of_processes(arguments: tuple[str, ...], folder: Path) -> None:
    """Whole and in shards the same products are taken; under the second setting no gradient reaches the first layer."""
    for name, flags in (("whole", ()), ("shards", ("--shard-base",))):
        ends = launch(2, folder, *COMMAND, *arguments, *flags, "--output", name)
        assert [end.code for end in ends] == [0, 0], ends

    assert largest_differences(folder / "whole", folder / "shards") == (0, 0)


def test_each_process_holds_its_part_of_the_layers(
    folder: Path, assert_same_as_one: Callable[[list[End]], None]
) -> None:
    """No layer is whole anywhere between a forward and a backward pass, and the parts together are all layers once."""
    ends = launch(3, folder, *SHARDED, "--output", "many", prepare="all_note_what_they_hold")

    assert_same_as_one(ends)
    held = [json.loads((folder / f"held-{rank}.json").read_text()) for rank in range(3)]
    layers = sum(w.nbytes for name, w in load_file(folder / "model/model.safetensors").items() if ".layers." in name)
    assert [record["layers"] for record in held] == [layers] * 3
    assert sum(record["shards_without_filling"] for record in held) == layers
    assert all(layers / 3 <= record["shards"] < layers / 3 * 1.05 for record in held), held
    assert [record["gathered"] for record in held] == [0, 0, 0]
    assert " MiB in each of 3 processes" in ends[0].err


def test_a_run_that_was_cut_off_goes_on_with_any_number_of_processes(folder: Path) -> None:
    ends = launch(2, folder, *SHARDED, "--output", "many", prepare="last_is_killed")
    assert all(end.code not in (0, None) for end in ends), ends
    shutil.copytree(folder / "many", folder / "cut")

    for count, arguments in ((3, ("--shard-base",)), (1, ())):
        shutil.rmtree(folder / "many")
        shutil.copytree(folder / "cut", folder / "many")
        ends = launch(count, folder, *COMMAND, *arguments, "--output", "many", "--resume")

        assert [end.code for end in ends] == [0] * count, ends
        losses, weights = largest_differences(folder / "one", folder / "many")
        assert losses < 1e-5
        assert weights < 1e-5


def test_a_signal_stops_all_after_the_same_step(folder: Path) -> None:
    ends = launch(2, folder, *SHARDED, "--output", "many", prepare="one_gets_a_signal")

    assert [end.code for end in ends] == [130, 130], ends
    assert "step 3 of 7 is saved" in ends[0].err
    ends = launch(2, folder, *SHARDED, "--output", "many", "--resume")
    assert [end.code for end in ends] == [0, 0], ends
    assert largest_differences(folder / "one", folder / "many")[1] < 1e-5


def test_evaluation(folder: Path) -> None:
    command = (
        "evaluate", "--model", "model", "--adapter", "one", "--reference", "twin", "--benchmark", "custom", "--forget",
        "forget.jsonl", "--retain", "retain.jsonl", "--holdout", "holdout.jsonl", "--max-new-tokens", "6", "--device",
        "cpu", "--samples", "2",
    )  # fmt: skip
    save_tiny(folder / "twin", "llama", seed=1)
    (single,) = launch(1, folder, *command, "--output", "one.json")
    assert single.code == 0, single.err

    ends = launch(3, folder, *command, "--shard-base", "--output", "many.json")

    assert [end.code for end in ends] == [0, 0, 0], ends
    one, many = (json.loads((folder / f"{name}.json").read_text())["metrics"] for name in ("one", "many"))
    assert one.keys() == many.keys()
    for name, entry in one.items():
        assert many[name]["n"] == entry["n"], name
        if entry["value"] is None:  # the two unseen texts are one once they are cut
            assert many[name]["value"] is None, name
            continue
        assert many[name]["value"] == pytest.approx(entry["value"], rel=1e-4, abs=1e-5), name


def test_out_of_memory_ends_all_in_one_line(folder: Path) -> None:
    """The others wait in the middle of a pass, so the step cannot be done again."""
    ends = launch(2, folder, *SHARDED, "--output", "many", prepare="last_runs_out_of_memory")

    assert [end.code for end in ends] == [2, 2], ends
    assert all("out of memory on cpu: with --shard-base" in end.err.splitlines()[-1] for end in ends), ends
    ends = launch(2, folder, *SHARDED, "--output", "many", "--resume")
    assert [end.code for end in ends] == [0, 0], ends
    assert largest_differences(folder / "one", folder / "many")[1] < 1e-5


def test_a_weight_that_is_not_finite_is_named(folder: Path) -> None:
    weights = load_file(folder / "model/model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][-1, -1] = float("nan")
    save_file(weights, folder / "model/model.safetensors", {"format": "pt"})

    ends = launch(2, folder, *SHARDED, "--output", "many")

    assert [end.code for end in ends] == [2, 2], ends
    said = "".join(end.err for end in ends)
    assert said.count("the model's weight model.layers.1.mlp.up_proj") == 1, "by the one that comes first"
    assert not (folder / "many").exists()


def test_a_broken_model_ends_those_that_wait_for_their_turn(folder: Path) -> None:
    """One whose file is whole, so that it is found out when the weights load."""
    file = folder / "model/model.safetensors"
    weights = {name.replace("model.norm", "model.other"): weight for name, weight in load_file(file).items()}
    save_file(weights, file, metadata={"format": "pt"})

    ends = launch(2, folder, *SHARDED, "--output", "many")

    assert [end.code for end in ends] == [2, 2], ends
    assert all("--model model" in end.err and "Traceback" not in end.err for end in ends), ends


@pytest.mark.parametrize("asked", [{"attacks": "gradient_norm"}, {"tasks": "mmlu"}])
def test_what_cannot_be_measured_in_shards_is_refused(asked: dict[str, str]) -> None:
    config = EvaluateConfig(model="model", benchmark="custom", forget="f.jsonl", output="o", shard_base=True, **asked)
    with pytest.raises(ConfigError, match="cannot be measured on a sharded base"):
        evaluate(config)


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_architecture_computes_the_same(arch: str, recompute: bool, tmp_path: Path, alone: None) -> None:
    save_tiny(tmp_path, arch)

    def gradients(loaded: LoadedModel) -> tuple[torch.Tensor, list[torch.Tensor | None], int]:
        model = add_adapter(loaded, rank=4, alpha=None, modules="all-linear", seed=0)
        torch.manual_seed(1)
        for parameter in trainable(model):
            torch.nn.init.normal_(parameter, std=0.1)
        if recompute:
            recompute_layers(loaded.base)
        batch = lay_out(loaded, [[1, 2, 3, 4, 5], [7, 8, 9]])
        kept = saved_bytes(model, lambda: final_states(loaded, batch))
        for _ in range(2):
            states = final_states(loaded, batch)
            states.square().sum().backward()
        return states.detach(), [parameter.grad for parameter in trainable(model)], kept

    whole = gradients(load_model(str(tmp_path), dtype="float32", device="cpu"))
    mesh = Processes().mesh(torch.device("cpu"))
    shards = load_model(str(tmp_path), dtype="float32", device="cpu", mesh=mesh)
    assert shards.lockstep is not None
    found = gradients(shards)

    torch.testing.assert_close(found, whole, rtol=0, atol=0)


@pytest.mark.parametrize("arch", ["llama", "opt", "bart"])
def test_every_pass_is_counted(arch: str, tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a model goes past the part that ends in the final states."""
    tiny(arch).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, "bytelevel")
    mesh = Processes().mesh(torch.device("cpu"))
    loaded = load_model(str(tmp_path), dtype="float32", device="cpu", mesh=mesh)
    counted: list[bool] = []
    monkeypatch.setattr(shard, "current", lambda: SimpleNamespace(any=counted.append))

    final_states(loaded, lay_out(loaded, [[1, 2, 3, 4, 5]]))
    loaded.base(input_ids=torch.tensor([[1, 2, 3]]), use_cache=False)

    assert counted == [True, True]
