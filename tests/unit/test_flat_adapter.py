"""An adapter in one buffer trains as PEFT's and Adam's own do, in a fraction of the kernels."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import rescale_adapter_scale
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from expunge.data.sampler import Step
from expunge.errors import TrainingError
from expunge.kernels import token_logps
from expunge.model import packing
from expunge.model.adapter import add_adapter, trainable
from expunge.model.flat_adapter import FlatAdapter, round_once
from expunge.model.head import cast_head, find_head
from expunge.model.load import LoadedModel, load_model
from expunge.model.logps import final_states, lay_out, sequence_logps
from expunge.model.saved import attach_adapter, save_adapter
from expunge.model.source import Source
from expunge.train.before import find_reference
from expunge.train.trainer import Trainer
from expunge.utils.progress import Reporter
from tiny import save_tiny, tiny_model, tiny_tokenizer
from training import made_up, prepared, ready

SEQUENCES = [list(range(3, 3 + length)) for length in (23, 9, 14)]
LAYERS, BUDGET = 30, 260
"""Non-view operations of a training step that a layer may cost."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    made: dict[str, Path] = {}

    def save(arch: str) -> str:
        if arch not in made:
            made[arch] = save_tiny(tmp_path_factory.mktemp(arch), arch)
        return str(made[arch])

    return save


def with_adapter(name: str, dtype: str = "float64") -> LoadedModel:
    loaded = load_model(name, dtype=dtype, device="cpu")
    add_adapter(loaded, rank=3, alpha=7.0, modules="all-linear", seed=0)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in trainable(loaded.model):
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return loaded


def loss_of(loaded: LoadedModel) -> torch.Tensor:
    batch = lay_out(loaded, SEQUENCES)
    return -token_logps(final_states(loaded, batch)[:-1], loaded.head, batch.flat_ids[1:]).mean()


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
@pytest.mark.parametrize(("dtype", "error"), [("float64", 1e-9), ("bfloat16", 0.06)])
def test_same_loss_and_gradients_as_the_library(arch: str, dtype: str, error: float, folder: Callable) -> None:
    plain, flat = with_adapter(folder(arch), dtype), with_adapter(folder(arch), dtype)
    adapter = FlatAdapter(flat)
    adapter.gradients.zero_()
    for loaded in (plain, flat):
        for _ in range(2):  # micro-batches add up
            loss_of(loaded).backward()
    torch.testing.assert_close(loss_of(flat), loss_of(plain), rtol=error, atol=error)
    for weight, right in zip(adapter.parameters, trainable(plain.model), strict=True):
        assert weight.grad.untyped_storage().data_ptr() == adapter.gradients.untyped_storage().data_ptr()
        assert (weight.grad - right.grad).norm() <= error * right.grad.norm()


def test_adam_is_that_of_each_matrix_bit_for_bit(folder: Callable) -> None:
    plain, flat = (with_adapter(folder("llama"), "float32") for _ in range(2))
    adapter = FlatAdapter(flat)
    optimizer = torch.optim.Adam(trainable(plain.model), lr=1.0)
    chance = torch.Generator().manual_seed(1)
    for rate in (1e-2, 3e-3, 1e-3, 5e-4):
        for weight, other in zip(adapter.parameters, trainable(plain.model), strict=True):
            other.grad = torch.randn(weight.shape, generator=chance) * 0.01
            weight.grad.copy_(other.grad)
        norm = torch.cat([other.grad.flatten() for other in trainable(plain.model)]).norm()
        for other in trainable(plain.model):
            other.grad.mul_((0.05 / norm).clamp(max=1.0))
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        torch.testing.assert_close(adapter.update(rate, 0.05), norm)
        for weight, other in zip(adapter.parameters, trainable(plain.model), strict=True):
            assert torch.equal(weight, other)


def test_what_is_stored_is_all_that_a_later_step_needs(folder: Callable) -> None:
    first, second = (FlatAdapter(with_adapter(folder("llama"), "float32")) for _ in range(2))
    chance = torch.Generator().manual_seed(2)
    grads = [torch.randn(first.weights.shape, generator=chance) for _ in range(4)]
    for number, grad in enumerate(grads):
        if number == 2:
            second.load_state({name: value.clone() for name, value in first.state().items()})
        first.gradients.copy_(grad)
        first.update(1e-2)
        if number >= 2:
            second.gradients.copy_(grad)
            second.update(1e-2)
    for name, value in first.state().items():
        assert torch.equal(value, second.state()[name]), name


def test_a_gradient_that_is_not_finite_changes_nothing(folder: Callable) -> None:
    adapter = FlatAdapter(with_adapter(folder("llama"), "float32"))
    adapter.gradients.fill_(0.1)
    adapter.update(1e-2)
    before = {name: value.clone() for name, value in adapter.state().items()}
    adapter.gradients[5] = torch.nan
    assert not adapter.update(1e-2, 1.0).isfinite()
    assert all(torch.equal(value, before[name]) for name, value in adapter.state().items())


def test_a_run_ends_where_its_first_step_has_no_gradient(folder: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FlatAdapter, "_round", lambda *_: None)  # all products are with zeros
    rows = made_up(2)
    trainer = Trainer(prepared(folder("llama"), dtype="bfloat16", forget=rows, retain=rows))
    find_reference(trainer, Reporter(quiet=True))

    with pytest.raises(TrainingError, match="step 1 has no gradient"):
        trainer.train_step(Step(0, [0], [1]))


def test_switched_off_scaled_and_saved_as_before(folder: Callable, tmp_path: Path) -> None:
    loaded = with_adapter(folder("llama"))
    ids = torch.tensor([SEQUENCES[0]])
    with torch.no_grad():
        on = loaded.model(input_ids=ids).logits
        with rescale_adapter_scale(loaded.model, 0.5):
            half = loaded.model(input_ids=ids).logits
        with loaded.model.disable_adapter():
            off = loaded.model(input_ids=ids).logits
        FlatAdapter(loaded)
        torch.testing.assert_close(loaded.model(input_ids=ids).logits, on)
        with rescale_adapter_scale(loaded.model, 0.5):
            torch.testing.assert_close(loaded.model(input_ids=ids).logits, half)
        with loaded.model.disable_adapter():
            assert torch.equal(loaded.model(input_ids=ids).logits, off)
        (tmp_path / "adapter").mkdir()
        save_adapter(loaded, tmp_path / "adapter")
        base = AutoModelForCausalLM.from_pretrained(folder("llama"), dtype=torch.float64)
        again = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
        torch.testing.assert_close(again(input_ids=ids).logits, on)


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_a_saved_adapter_is_measured_as_in_training(arch: str, folder: Callable, tmp_path: Path) -> None:
    """To the last bit, in fewer operations than PEFT's layers take; switched off, the base is itself."""
    trained, counts = with_adapter(folder(arch), "bfloat16"), []
    FlatAdapter(trained)
    right = sequence_logps(trained, SEQUENCES)
    with trained.adapter_off():
        untouched = sequence_logps(trained, SEQUENCES)
    save_adapter(trained, tmp_path)
    loaded = load_model(folder(arch), dtype="bfloat16", device="cpu")
    attach_adapter(loaded, str(tmp_path))
    for change in (lambda _: None, round_once):
        change(loaded)
        with Operations() as operations:
            found = sequence_logps(loaded, SEQUENCES)
        counts.append(operations.count)
    assert loaded.head.weight is not None, "the plain path: slower, and its logits round in another way"
    assert loaded.packs([*map(len, SEQUENCES)])
    layers = sum("lora_A" in name for name, _ in loaded.model.named_parameters())
    assert counts[0] - counts[1] >= 5 * layers
    assert all(map(torch.equal, found, right))
    with loaded.adapter_off():
        assert all(map(torch.equal, sequence_logps(loaded, SEQUENCES), untouched))


def test_layers_that_do_more_than_two_products_stay_as_they_are(folder: Callable) -> None:
    for settings in ({"use_dora": True}, {"lora_bias": True}):
        loaded = load_model(folder("gpt2"), dtype="float32", device="cpu")
        config = LoraConfig(task_type="CAUSAL_LM", target_modules=["c_attn"], init_lora_weights=False, **settings)
        loaded.model = get_peft_model(loaded.base, config).eval()
        kinds, right = [*map(type, loaded.model.modules())], sequence_logps(loaded, SEQUENCES)
        round_once(loaded)
        assert [*map(type, loaded.model.modules())] == kinds
        assert all(map(torch.equal, sequence_logps(loaded, SEQUENCES), right))


class Operations(TorchDispatchMode):
    """Counts what is dispatched and is no view: what costs a GPU a kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func._schema.returns
        view = any(result.alias_info is not None and not result.alias_info.is_write for result in results)
        self.count += bool(results) and not view
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("way", [packing.MASK, packing.VARLEN])
def test_kernel_budget(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass there and back with its update: at most `BUDGET` operations a layer, as many for 40 rows as for 4."""
    monkeypatch.setattr(packing, "attention_way", lambda model: way)
    if way == packing.VARLEN:
        monkeypatch.setattr(packing, "varlen_attn", stand_in)
    model = tiny_model("llama", num_hidden_layers=LAYERS).to(torch.bfloat16).requires_grad_(False)
    model.set_attn_implementation("sdpa")
    head = cast_head(find_head(model)[0], model, torch.bfloat16)
    loaded = LoadedModel(model, tiny_tokenizer("bytelevel"), head, torch.bfloat16, Source("tiny", "tiny"))
    loaded.packable_length = packing.UNBOUNDED
    add_adapter(loaded, rank=4, alpha=8, modules="all-linear", seed=0)
    adapter = FlatAdapter(loaded)
    counts = {}
    for rows in (4, 40):
        batch = lay_out(loaded, [[5] * (320 // rows + row % 2) for row in range(rows)])
        with Operations() as operations:
            adapter.gradients.zero_()
            states = final_states(loaded, batch)
            (-token_logps(states[:-1], loaded.head, batch.flat_ids[1:]).mean()).backward()
            adapter.update(1e-3, 1.0)
        counts[rows] = operations.count
    assert counts[40] <= BUDGET * LAYERS
    assert abs(counts[40] - counts[4]) <= 0.02 * counts[4]


@pytest.mark.parametrize(("loss", "recipe"), [("target_kl", "default"), ("npo", "npo")])
def test_kernel_budget_of_a_whole_step(loss: str, recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the trainer itself takes, with all terms, its update and its average, to the line of the log.

    Counted with one layer and with two: what a layer takes, and what the rest does.
    """
    monkeypatch.setattr(packing, "varlen_attn", stand_in)
    sides = {name: made_up(20, seed) for seed, name in enumerate(("forget", "retain", "unseen"))}
    weights = {"retain_weight": 2.0, "kl_weight": 2.0, "replay_weight": 3.0, "context_tokens": 0}
    counts: dict[tuple[str, int], list[int]] = {}
    for layers in (1, 2):
        folder = save_tiny(tmp_path / str(layers), "llama", num_hidden_layers=layers)
        run = prepared(folder, dtype="bfloat16", recipe=recipe, loss=loss, **sides, **weights)
        run.loaded.packable_length = packing.UNBOUNDED  # by the stand-in rows see each other, so none would be packed
        trainer = ready(run, replay=made_up(20, 3))
        for way in (packing.MASK, packing.VARLEN):
            monkeypatch.setattr(packing, "attention_way", lambda model, way=way: way)
            for rows in (6, 60):
                of_each = list(range(rows // 3))
                with Operations() as operations:
                    found = trainer.train_step(Step(0, of_each, of_each, of_each))
                assert {"forget", "retain", "kl", "replay"} < found.keys()
                counts.setdefault((way, rows), []).append(operations.count)
    whole = {key: one + (LAYERS - 1) * (two - one) for key, (one, two) in counts.items()}
    print(loss, {key: round(count / LAYERS) for key, count in whole.items()})
    assert max(whole.values()) <= BUDGET * LAYERS
    for way in (packing.MASK, packing.VARLEN):
        assert abs(whole[way, 60] - whole[way, 6]) <= 0.02 * whole[way, 6]


def stand_in(query, key, value, *cuts, window_size, scale, enable_gqa):
    """One operation with a gradient, in place of a kernel that the CPU does not have."""
    return torch.nn.functional.scaled_dot_product_attention(
        *(states.transpose(0, 1)[None] for states in (query, key, value)), scale=scale, enable_gqa=enable_gqa
    )[0].transpose(0, 1)
