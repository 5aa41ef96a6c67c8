"""Losses, gradients and five Adam steps of the paper's published code, through the trainer (golden set, section 4)."""

import json
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from expunge.config import UnlearnConfig
from expunge.data.examples import Example
from expunge.data.sampler import Step
from expunge.data.tokenize import Join, tokenize
from expunge.kernels import token_logps
from expunge.model.load import load_model
from expunge.model.logps import sequence_logps
from expunge.train.trainer import Trainer
from expunge.utils.progress import Reporter


@pytest.fixture(scope="module")
def golden(shared):
    folder = shared / "golden" / "train_step"
    return json.loads((folder / "expected.json").read_text()), load_file(folder / "tensors.safetensors")


@pytest.fixture(scope="module")
def model_folder(shared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    for source in (shared / "golden" / "models" / "random", shared / "golden" / "models" / "tokenizer"):
        for path in source.iterdir():
            (folder / path.name).symlink_to(path)
    return folder


def trainer_and_steps(golden, model_folder, run):
    """The trainer under `paper-code`, its adapter at the stored start, and the five stored batches as steps."""
    expected, tensors = golden
    config = UnlearnConfig(
        "paper-code",
        model=str(model_folder),
        forget="-",
        retain="-",
        output="-",
        beta=run["beta"],
        forget_weight=run["npo_mult"],
        retain_weight=run["rt_mult"],
        kl_weight=run["kl_mult"],
        learning_rate=run["learning_rate"],
    )
    loaded = load_model(config.model, dtype={"fp64": "float64", "fp32": "float32"}[run["dtype"]], device="cpu")
    sides: dict[int, list] = {1: [], 0: []}
    steps = []
    for batch in expected["batches"]:
        places: dict[int, list[int]] = {1: [], 0: []}
        for row in batch:
            example = Example(row["id"], row["input"], row["output"])
            places[row["forget"]].append(len(sides[row["forget"]]))
            join = Join(config.join, config.end_of_text == "yes")
            sides[row["forget"]].append(tokenize(loaded.tokenizer, example, join, max_length=2048))
        steps.append(Step(0, places[1], places[0]))
    prepared = SimpleNamespace(config=config, loaded=loaded, instead=[], forget=sides[1], retain=sides[0])
    trainer = Trainer(prepared, Accelerator(cpu=True))
    trainer.compute_reference(Reporter(quiet=True))
    with torch.no_grad():
        for name, parameter in adapter(trainer).items():
            parameter.copy_(tensors[f"init.{name}"])
            parameter.data = parameter.data.to(loaded.dtype)
    return trainer, steps


def adapter(trainer):
    """The adapter's parameters under the golden set's names, such as `layers.0.q_proj.A`."""
    found = {}
    for name, parameter in trainer.model.named_parameters():
        if parameter.requires_grad:
            parts = name.split(".")
            layer = parts.index("layers")
            matrix = next(part for part in parts if part.startswith("lora_"))[-1]
            found[f"layers.{parts[layer + 1]}.{parts[layer + 3]}.{matrix}"] = parameter
    return found


RUNS = [0, 1, 2, 3]
NAMES = {"npo": "npo_loss", "retain_nll": "retain_loss", "retain_kl": "kl_retain_loss", "loss": "total_loss"}


def test_tokens_are_those_of_the_published_code(golden, model_folder):
    expected, tensors = golden
    trainer, steps = trainer_and_steps(golden, model_folder, expected["runs"][0])
    for index, (batch, step) in enumerate(zip(expected["batches"], steps, strict=True)):
        forget, retain = iter(step.forget), iter(step.retain)
        for place, row in enumerate(batch):
            text = trainer.forget[next(forget)] if row["forget"] else trainer.retain[next(retain)]
            length = int(tensors[f"batch{index}.attention_mask"][place].sum())
            assert text.input_ids == tensors[f"batch{index}.input_ids"][place, :length].tolist()
            assert text.completion_start == int(tensors[f"batch{index}.ranges"][place, 0])


@pytest.mark.parametrize("index", RUNS)
def test_five_steps(golden, model_folder, index):
    expected, tensors = golden
    run = expected["runs"][index]
    exact = run["dtype"] == "fp64"
    trainer, steps = trainer_and_steps(golden, model_folder, run)
    for number, (step, losses) in enumerate(
        zip(steps, run["losses_of_five_consecutive_steps_batches_0_to_4"], strict=True)
    ):
        terms = trainer.train_step(step, number)
        for name, stored in NAMES.items():
            assert terms[name] == pytest.approx(losses[stored], abs=1e-9 if exact else 5e-6), (number, name)
        if number == 0:
            for name, parameter in adapter(trainer).items():
                stored_grad = tensors[f"{run['hyper']}.grad_first_step_batch0.{name}"]
                torch.testing.assert_close(parameter.grad.double(), stored_grad, rtol=0, atol=1e-9 if exact else 1e-5)
        if number in (0, 4):
            for name, parameter in adapter(trainer).items():
                stored_weight = tensors[f"{run['hyper']}.after_step{number + 1}.{name}"]
                torch.testing.assert_close(
                    parameter.detach().double(), stored_weight, rtol=0, atol=1e-9 if exact else 1e-6
                )


def test_token_logps_of_reference_and_policy(golden, model_folder):
    expected, tensors = golden
    run = next(run for run in expected["runs"] if run["hyper"] == "default" and run["dtype"] == "fp64")
    trainer, steps = trainer_and_steps(golden, model_folder, run)
    lengths = tensors["batch0.attention_mask"].sum(-1).tolist()
    rows = [ids[:length].tolist() for ids, length in zip(tensors["batch0.input_ids"], lengths, strict=True)]

    def compare(name):
        for place, logps in enumerate(sequence_logps(trainer.loaded, rows)):
            stored = tensors[f"token_logprob.{name}.batch0"][place, : lengths[place] - 1]
            torch.testing.assert_close(logps, stored, rtol=0, atol=2e-6)

    compare("policy_initial")
    with trainer.model.disable_adapter():
        compare("reference")
    for number, step in enumerate(steps):
        trainer.train_step(step, number)
    compare("policy_after_5")


def test_head_of_the_golden_model_is_taken_apart(model_folder):
    loaded = load_model(str(model_folder), dtype="float32", device="cpu")
    assert loaded.plain_head is None
    ids = torch.arange(20)[None]
    hidden = loaded.base.model(input_ids=ids).last_hidden_state[0, :-1]
    plain = loaded.base(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(token_logps(hidden, loaded.head, ids[0, 1:]), plain, rtol=1e-5, atol=1e-5)
