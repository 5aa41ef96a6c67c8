"""What must hold on a GPU, in under a minute: `pytest -m cuda`; equal means within the rounding that is stated."""

import gc
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import pytest
import torch

from expunge.evaluation.generate import greedy
from expunge.kernels import token_logps
from expunge.model import packing
from expunge.model.adapter import add_adapter, trainable
from expunge.model.captured import Recorder
from expunge.model.decoding import go_on, written
from expunge.model.flat_adapter import FlatAdapter
from expunge.model.layers import recompute_layers
from expunge.model.load import LoadedModel, load_model
from expunge.model.logps import sequence_logps, target_states
from expunge.train import speed
from tiny import ARCHITECTURES, save_tiny
from training import made_up, prepared, ready

pytestmark = pytest.mark.cuda
ROWS = [list(range(3, 3 + length)) for length in (23, 2, 41, 9, 64, 3)]
EXACT, ROUNDED = 1e-4, 0.08
"""Relative differences of fp32 and bfloat16 gradients of tiny models, whose logits are spread over several nats."""


@pytest.fixture(autouse=True)
def _no_tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def with_adapter(folder: Path, arch: str, dtype: str) -> tuple[LoadedModel, FlatAdapter]:
    loaded = load_model(str(save_tiny(folder, arch)), dtype=dtype, device="cuda")
    add_adapter(loaded, rank=3, alpha=6.0, modules="all-linear", seed=0)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in trainable(loaded.model):
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return loaded, FlatAdapter(loaded)


def mean_nll(loaded: LoadedModel) -> torch.Tensor:
    """Mean NLL over all tokens but the first of each row."""
    states, ids = target_states(loaded, ROWS, [range(1, len(row)) for row in ROWS])
    return -token_logps(states, loaded.head, ids).mean()


def gradient(loaded: LoadedModel, adapter: FlatAdapter) -> torch.Tensor:
    """Of `mean_nll`."""
    adapter.gradients.zero_()
    mean_nll(loaded).backward()
    return adapter.gradients.clone()


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_logps_are_those_of_transformers(arch: str, tmp_path: Path) -> None:
    loaded = load_model(str(save_tiny(tmp_path, arch)), dtype="float32", device="cuda")
    for ids, found in zip(ROWS, sequence_logps(loaded, ROWS), strict=True):
        with torch.no_grad():
            logits = loaded.model(input_ids=torch.tensor([ids], device="cuda")).logits[0, :-1]
        right = logits.log_softmax(-1).gather(-1, torch.tensor(ids[1:], device="cuda")[:, None])[:, 0]
        torch.testing.assert_close(found, right.cpu(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("dtype", "error"), [("float32", EXACT), ("bfloat16", ROUNDED)])
@pytest.mark.parametrize("arch", ["llama", "gemma3", "gpt2"])
def test_packed_padded_and_recomputed_give_one_gradient(arch: str, dtype: str, error: float, tmp_path: Path) -> None:
    loaded, adapter = with_adapter(tmp_path, arch, dtype)
    assert loaded.packable_length == packing.UNBOUNDED
    packed = gradient(loaded, adapter)
    longest, loaded.packable_length = loaded.packable_length, 0
    assert apart(gradient(loaded, adapter), packed) < error
    loaded.packable_length = longest
    recompute_layers(loaded.base)
    assert apart(gradient(loaded, adapter), packed) < error / 10


def test_flash_attention_takes_the_rows_where_there_is_one(tmp_path: Path) -> None:
    loaded, _ = with_adapter(tmp_path, "llama", "bfloat16")
    with loaded.autocast():
        assert packing.attention_way(loaded.base) == packing.VARLEN


def test_fused_adam_is_adam_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    """Within rounding against Adam on the CPU; bit for bit against itself."""
    (_, first), (_, second) = (with_adapter(tmp_path / name, "llama", "float32") for name in ("one", "two"))
    plain = first.weights.detach().cpu().clone().requires_grad_()
    optimizer = torch.optim.Adam([plain], lr=1e-2)
    chance = torch.Generator().manual_seed(2)
    for number in range(4):
        grad = torch.randn(first.weights.shape, generator=chance)
        if number == 2:
            second.load_state({name: value.clone() for name, value in first.state().items()})
        plain.grad = grad.clone()
        optimizer.step()
        for adapter in (first, second)[: 1 + (number >= 2)]:
            adapter.gradients.copy_(grad)
            adapter.update(1e-2)
    torch.testing.assert_close(first.weights.detach().cpu(), plain.detach(), rtol=1e-4, atol=1e-6)
    assert torch.equal(first.weights, second.weights)


def test_a_gradient_that_is_not_finite_changes_nothing(tmp_path: Path) -> None:
    _, adapter = with_adapter(tmp_path, "llama", "bfloat16")
    adapter.gradients.fill_(0.1)
    adapter.update(1e-2)
    before = {name: value.clone() for name, value in adapter.state().items()}
    adapter.gradients[5] = torch.inf
    adapter.update(1e-2, 1.0)
    assert all(torch.equal(value, before[name]) for name, value in adapter.state().items())


@pytest.mark.parametrize("loss", ["npo", "target_kl"])
def test_captured_passes_are_those_of_the_layers_or_say_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    monkeypatch.setattr(speed, "FASTER", float("inf"))  # a graph of a tiny model is to be checked, not to be fast
    rows = {"forget": made_up(6, 1), "retain": made_up(9, 2)}
    model = save_tiny(tmp_path, "llama")
    more = {"unseen": made_up(8, 4), "replay_weight": 1.0} if loss == "target_kl" else {}
    settings = {"dtype": "bfloat16", "device": "cuda", "tokens_per_step": 150, "loss": loss}
    trainer = ready(prepared(model, **settings, **rows, **more), replay=made_up(6, 3) if more else ())
    trainer.rows.sides["forget"].guessed = False  # rounding would say which of two tokens gets which target
    line = speed.capture(trainer, Recorder(trainer.loaded.device))
    assert line.startswith("passes captured"), line
    captured = trainer.loaded.captured
    for step in islice(trainer.rows.plan.steps(), 12):
        found, grad = trainer.gradient(step), trainer.adapter.gradients.clone()
        trainer.loaded.captured = None
        right = trainer.gradient(step)
        assert apart(grad, trainer.adapter.gradients) < ROUNDED
        assert apart(found, right) < ROUNDED
        trainer.loaded.captured = captured
    before = trainer.weights.clone()
    lines = trainer.read([trainer.take_step(step) for step in islice(trainer.rows.plan.steps(), 3)])
    assert len({line["loss"] for line in lines}) == 3
    assert not torch.equal(before, trainer.weights)


def test_layers_in_four_bits_train_as_the_librarys(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    folder = save_tiny(tmp_path, "llama", hidden_size=64, intermediate_size=128, head_dim=16)
    found = []
    for flat in (False, True):
        loaded = load_model(str(folder), dtype="bfloat16", device="cuda", load_in_4bit=True)
        add_adapter(loaded, rank=3, alpha=6.0, modules="all-linear", seed=0)
        for parameter in trainable(loaded.model):
            parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)).cuda()
        if flat:
            found.append(gradient(loaded, FlatAdapter(loaded)))
            continue
        mean_nll(loaded).backward()
        found.append(torch.cat([weight.grad.flatten() for weight in trainable(loaded.model)]))
    assert found[1].norm().item() == pytest.approx(found[0].norm().item(), rel=ROUNDED)  # padded: another order


def test_what_makes_the_host_wait_is_refused_before_it_is_captured() -> None:
    ones, recorder = torch.ones(3, device="cuda"), Recorder(torch.device("cuda:0"))
    with pytest.raises(RuntimeError, match="synchroniz"):
        recorder.warm_up(lambda: print(ones.sum().item()))
    assert torch.rand(3, device="cuda").sum().item() > 0


def test_a_capture_that_fails_leaves_random_numbers_and_the_next_capture_as_they_were() -> None:
    ones, recorder = torch.ones(3, device="cuda"), Recorder(torch.device("cuda:0"))
    torch.manual_seed(5)
    right = torch.rand(3, device="cuda")
    torch.manual_seed(5)
    with pytest.raises(RuntimeError):
        recorder.record(lambda: print(ones.sum().item()))
    assert torch.equal(torch.rand(3, device="cuda"), right)
    recorder = Recorder(torch.device("cuda:0"))
    recorder.warm_up(lambda: ones.mul_(2))
    replay, before = recorder.record(lambda: ones.mul_(2)), ones.clone()
    replay()
    assert torch.equal(ones, 2 * before)


def test_garbage_that_holds_a_graph_does_not_break_a_capture() -> None:
    ones, recorder = torch.ones(3, device="cuda"), Recorder(torch.device("cuda:0"))
    recorder.warm_up(lambda: ones.mul_(2))
    cycle: list[object] = [recorder.record(lambda: ones.mul_(2))]
    cycle.append(cycle)
    before = gc.get_threshold()

    def work() -> None:
        nonlocal cycle
        cycle = []
        gc.set_threshold(1)
        _ = [[number] for number in range(2000)]  # so many new objects start a collection
        ones.mul_(2)

    try:
        recorder.record(work)()
    finally:
        gc.set_threshold(*before)


def test_replay_texts_are_those_of_the_library(tmp_path: Path) -> None:
    loaded = load_model(str(save_tiny(tmp_path, "llama")), dtype="float32", device="cuda")
    begun, found = [[token] for token in range(40)], []
    for write in (written, partial(go_on, temperature=1.0)):
        torch.manual_seed(4)
        found.append([text[:20] for text in write(loaded, begun, most=24, stops=set())])
    assert not loaded.told(), "a step is captured"
    assert sum(map(list.__eq__, *found)) >= 38  # a draw on the edge may fall to the other side


def test_batched_decoding_says_what_decoding_one_at_a_time_says(tmp_path: Path) -> None:
    loaded = load_model(str(save_tiny(tmp_path, "llama")), dtype="float32", device="cuda")
    for ids, found in zip(ROWS, greedy(loaded, ROWS, max_new_tokens=24), strict=True):
        prompt = torch.tensor([ids], device="cuda")
        right = loaded.base.generate(prompt, max_new_tokens=24, do_sample=False, pad_token_id=0)[0, len(ids) :].tolist()
        assert found == right
