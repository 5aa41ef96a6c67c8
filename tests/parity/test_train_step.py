"""Losses, gradients and five Adam steps of the paper's published code (golden set, section 4).

Its "KL" looks at the target token alone. `bench.plain` has it as a switch; the product, which has the exact KL, takes
the five steps with the published one in its place, and is held to stored numbers of its own terms.
"""

import json

import pytest
import torch
from safetensors.torch import load_file

from bench.plain import Plain, load_plain
from expunge.data.examples import Example
from expunge.data.sampler import Step
from expunge.data.tokenize import PromptFormat, tokenize
from expunge.kernels import token_kl, token_logps
from expunge.losses.collate import collate, count
from expunge.model.load import load_model
from expunge.model.logps import sequence_logps
from expunge.model.saved import attach_adapter
from expunge.train.before import find_reference
from expunge.train.trainer import Trainer
from expunge.utils.progress import Reporter
from training import prepared

DTYPES = {"fp64": "float64", "fp32": "float32"}
NAMES = {"forget": "npo_loss", "retain": "retain_loss", "kl": "kl_retain_loss"}
RUNS = [0, 1, 2, 3]
EXACT = 1e-9
"""Tolerance of losses, gradients and weights in fp64, absolute."""


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


def both(golden, model_folder, run, **settings):
    """The trainer and the plain algorithm of a stored run, both with the stored adapter, and the batches as steps."""
    expected, tensors = golden
    dtype = DTYPES[run["dtype"]]
    sides, steps = {1: [], 0: []}, []
    plain = load_plain(str(model_folder), dtype=dtype, device="cpu")
    for batch in expected["batches"]:
        places = {1: [], 0: []}
        for row in batch:
            side = row["forget"]
            places[side].append(len(sides[side]))
            example, prompt_format = Example(row["id"], row["input"], row["output"]), PromptFormat("separate", False)
            sides[side].append(tokenize(plain.tokenizer, example, prompt_format, max_length=2048))
        steps.append(Step(0, places[1], places[0], number=len(steps)))
    setup = prepared(
        model_folder,
        dtype=dtype,
        forget=sides[1],
        retain=sides[0],
        recipe="paper",
        loss_args=f"beta={run['beta']},level={run.get('level', 'token')}",
        forget_weight=run["npo_mult"],
        retain_weight=run["rt_mult"],
        kl_weight=run["kl_mult"],
        learning_rate=run["learning_rate"],
        lora_rank=expected["lora"]["rank"],
        **settings,
    )
    other = Plain(plain, sides[1], sides[0], setup.config, target_token_kl=True)
    trainer = Trainer(setup)
    find_reference(trainer, Reporter(quiet=True))
    with torch.no_grad():
        for model in (trainer.model, other.model):
            for name, parameter in adapter(model).items():
                parameter.copy_(tensors[f"init.{name}"])
                parameter.data = parameter.data.to(setup.loaded.dtype)
    return trainer, other, steps


def batch_of(plain, step):
    forget = [row for row, is_forget in plain.rows if is_forget]
    retain = [row for row, is_forget in plain.rows if not is_forget]
    return [(forget[i], True) for i in step.forget] + [(retain[i], False) for i in step.retain]


def adapter(model):
    """The adapter's parameters under the golden set's names, such as `layers.0.q_proj.A`."""
    found = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parts = name.split(".")
            layer = parts.index("layers")
            matrix = next(part for part in parts if part.startswith("lora_"))[-1]
            found[f"layers.{parts[layer + 1]}.{parts[layer + 3]}.{matrix}"] = parameter
    return found


def test_tokens_are_those_of_the_published_code(golden, model_folder):
    expected, tensors = golden
    trainer, _, steps = both(golden, model_folder, expected["runs"][0])
    for index, (batch, step) in enumerate(zip(expected["batches"], steps, strict=True)):
        forget, retain = iter(step.forget), iter(step.retain)
        for place, row in enumerate(batch):
            side, at = ("forget", next(forget)) if row["forget"] else ("retain", next(retain))
            text = trainer.rows.sides[side].rows[at]
            length = int(tensors[f"batch{index}.attention_mask"][place].sum())
            assert text.input_ids == tensors[f"batch{index}.input_ids"][place, :length].tolist()
            assert text.completion_start == int(tensors[f"batch{index}.ranges"][place, 0])
            targets = tensors[f"batch{index}.answer_mask"][place].nonzero()[:, 0].tolist()
            assert list(text.targets("completion")) == targets


def published_kl(hidden, ref_hidden, head, targets):
    """As `token_logps_and_kl`, with what the published code has for a KL: that of the observed token."""
    logps, ref_logps = (token_logps(states, head, targets) for states in (hidden, ref_hidden))
    return logps, ref_logps.exp() * (ref_logps - logps)


@pytest.fixture(params=["plain", "product"])
def stepper(request, golden, model_folder, monkeypatch):
    """From a stored run to what takes its steps, the model in it, what gives the gradient of a step, and the steps."""
    monkeypatch.setattr("expunge.losses.terms.token_logps_and_kl", published_kl)

    def made(run):
        trainer, plain, steps = both(golden, model_folder, run)
        if request.param == "product":
            return trainer.train_step, trainer.model, trainer.gradient, steps
        return (
            lambda step: plain.train_step(batch_of(plain, step)),
            plain.model,
            lambda step: plain.loss(plain.terms(batch_of(plain, step))).backward(),
            steps,
        )

    return made


@pytest.mark.parametrize("index", RUNS)
def test_five_steps(golden, stepper, index):
    expected, tensors = golden
    run = expected["runs"][index]
    exact = run["dtype"] == "fp64"
    take, model, _, steps = stepper(run)
    stored_losses = run["losses_of_five_consecutive_steps_batches_0_to_4"]
    for number, (step, losses) in enumerate(zip(steps, stored_losses, strict=True)):
        terms = take(step)
        for name, stored in NAMES.items():
            assert terms[name] == pytest.approx(losses[stored], abs=EXACT if exact else 5e-6), (number, name)
        for name, parameter in adapter(model).items():
            if number == 0:
                stored_grad = tensors[f"{run['hyper']}.grad_first_step_batch0.{name}"]
                torch.testing.assert_close(parameter.grad.double(), stored_grad, rtol=0, atol=EXACT if exact else 1e-5)
            if number in (0, 4):
                weight = tensors[f"{run['hyper']}.after_step{number + 1}.{name}"]
                found = parameter.detach().double()
                torch.testing.assert_close(found, weight, rtol=0, atol=EXACT if exact else 1e-6)


@pytest.mark.parametrize("number", [2, 3])
def test_gradient_of_one_side_alone(golden, stepper, number):
    """Batch 2 has retain rows alone, batch 3 forget rows alone, so that there the KL does not matter."""
    expected, tensors = golden
    _, model, gradient, steps = stepper(expected["runs"][0])
    gradient(steps[number])
    start = f"default.grad_first_step_batch{number}."
    stored = {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}
    assert len(stored) == 4
    for name, wanted in stored.items():
        torch.testing.assert_close(adapter(model)[name].grad, wanted, rtol=0, atol=EXACT)


@pytest.mark.parametrize("index", RUNS)
def test_terms_of_the_product(golden, model_folder, index):
    """Every stored batch at the stored adapter; the exact KL beside them has its own stored values."""
    expected, _ = golden
    run = expected["runs"][index]
    tolerance = EXACT if run["dtype"] == "fp64" else 5e-6
    trainer, _, steps = both(golden, model_folder, run)
    start = {name: value.clone() for name, value in trainer.state().items()}
    for step, losses, intended in zip(
        steps,
        run["loss_of_each_batch_at_initial_weights"],
        expected["intended_initial_weights_fp64"],
        strict=True,
    ):
        terms = trainer.train_step(step)
        for name in ("forget", "retain"):
            assert terms[name] == pytest.approx(losses[NAMES[name]], abs=tolerance), name
        assert terms["kl"] == pytest.approx(intended.get("retain_reverse_kl_full_vocabulary", 0), abs=tolerance)
        trainer.load_state(start)


def test_sequences_and_divergences_of_the_product(golden, model_folder):
    """What the published code does not compute: NPO per sequence, and the KL over the whole vocabulary, both ways."""
    expected, _ = golden
    trainer, _, steps = both(golden, model_folder, expected["runs"][0] | {"level": "sequence"})
    for step, intended in zip(steps, expected["intended_initial_weights_fp64"], strict=True):
        chosen = {"forget": step.forget, "retain": step.retain}
        counts = {name: count(trainer.rows.sides[name], rows) for name, rows in chosen.items()}
        for name, size in counts.items():
            assert size.tokens == intended[f"{name}_answer_tokens"]
        with torch.no_grad():
            found = collate(trainer.loaded, trainer.rows.sides, chosen, counts)
        stored = {"forget": "npo_per_sequence", "retain": "retain_forward_kl_full_vocabulary"}
        assert found.keys() == {name for name, key in stored.items() if key in intended}
        if "forget" in found:
            batch = found["forget"]
            assert trainer.loss(batch).item() == pytest.approx(intended["npo_per_sequence"], abs=EXACT)
            ratios = -batch.per_sequence(batch.log_ratios)
            assert ratios.tolist() == pytest.approx(intended["sequence_log_ratio"], abs=EXACT)
        if "retain" in found:
            batch = found["retain"]
            sides = {"reverse": (batch.states, batch.ref_states), "forward": (batch.ref_states, batch.states)}
            for way, (first, second) in sides.items():
                kl = token_kl(first, second, batch.head)
                stored_kl = intended[f"retain_{way}_kl_full_vocabulary"]
                assert batch.token_mean(kl).item() == pytest.approx(stored_kl, abs=EXACT)


def check_token_logps(loaded, tensors, name, tolerance):
    """Of the first batch, in which the stored ones are of an fp64 run and rounded to fp32."""
    lengths = tensors["batch0.attention_mask"].sum(-1).tolist()
    rows = [ids[:length].tolist() for ids, length in zip(tensors["batch0.input_ids"], lengths, strict=True)]
    for place, logps in enumerate(sequence_logps(loaded, rows)):
        stored = tensors[f"token_logprob.{name}.batch0"][place, : lengths[place] - 1]
        torch.testing.assert_close(logps, stored, rtol=0, atol=tolerance)


def test_token_logps_and_merged_weights(golden, model_folder):
    expected, tensors = golden
    run = next(run for run in expected["runs"] if run["hyper"] == "default" and run["dtype"] == "fp64")
    trainer, plain, steps = both(golden, model_folder, run)
    one_step = 1e-6  # of fp32, at up to 9 nats
    check_token_logps(trainer.loaded, tensors, "policy_initial", one_step)
    with trainer.model.disable_adapter():
        check_token_logps(trainer.loaded, tensors, "reference", one_step)
    for step in steps:
        plain.train_step(batch_of(plain, step))
    with torch.no_grad():
        for parameter, other in zip(trainer.parameters, plain.parameters, strict=True):
            parameter.copy_(other)
    check_token_logps(trainer.loaded, tensors, "policy_after_5", one_step)
    merged = trainer.model.merge_and_unload()
    for number, layer in enumerate(merged.model.layers):
        stored = tensors[f"merged_weight_after_5.layers.{number}.q_proj"]  # rounded to fp32
        torch.testing.assert_close(layer.self_attn.q_proj.weight.float(), stored, rtol=0, atol=1e-7)


def test_the_published_adapter_as_a_peft_folder(shared, golden, model_folder):
    _, tensors = golden
    loaded = load_model(str(model_folder), dtype="float32", device="cpu")
    attach_adapter(loaded, str(shared / "golden" / "train_step" / "peft_adapter_initial"))
    parameters = adapter(loaded.model)
    assert parameters.keys() == {name.removeprefix("init.") for name in tensors if name.startswith("init.")}
    for name, parameter in parameters.items():
        assert torch.equal(parameter, tensors[f"init.{name}"])
    check_token_logps(loaded, tensors, "policy_initial", 5e-6)
    with loaded.model.disable_adapter():
        check_token_logps(loaded, tensors, "reference", 5e-6)


def test_head_of_the_golden_model_is_taken_apart(model_folder):
    loaded = load_model(str(model_folder), dtype="float32", device="cpu")
    assert loaded.head.weight is not None
    ids = torch.arange(20)[None]
    hidden = loaded.base.model(input_ids=ids).last_hidden_state[0, :-1]
    plain = loaded.base(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    torch.testing.assert_close(token_logps(hidden, loaded.head, ids[0, 1:]), plain, rtol=1e-5, atol=1e-5)
