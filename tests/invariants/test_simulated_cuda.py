"""What runs on a GPU, run on the CPU as if it were one (`simulated_cuda`): devices, waits, and the same numbers."""

import gc
import itertools
import json
import random
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM, AutoTokenizer

from expunge.config import UnlearnConfig
from expunge.data.tokenize import TokenizedExample
from expunge.errors import ModelError
from expunge.evaluation.generate import greedy, sample
from expunge.evaluation.gradients import gradient_norms
from expunge.evaluation.teacher_forcing import token_records
from expunge.kernels.head import CHUNK_ELEMENTS
from expunge.losses import FORGET_LOSSES, target_kl
from expunge.model import captured as captured_passes
from expunge.model import decoding, load, memory, packing, replay
from expunge.model.head import backbone
from expunge.model.load import load_model
from expunge.model.logps import sequence_logps
from expunge.runs.settings import resumed_settings
from expunge.train import loop, speed
from expunge.train.dry_run import forecast
from expunge.train.step_rows import StepRows
from expunge.train.trainer import STEPS_PER_READ, Trainer
from expunge.utils.progress import Reporter
from simulated_cuda import CUDA, FakeRecorder, SimulatedCuda
from tiny import save_tiny
from training import made_up, prepared, ready

LENGTHS = (23, 2, 41, 9, 17, 3)
LAUNCHES = 175
"""Most operations of a step outside of the graphs of its passes, the 14 casts of the stand-in for `mm` among them."""
EXACT, ROUNDED = 1e-4, 0.08
"""Relative differences of the gradient in fp32, and in bfloat16, where a GPU does not round the logits."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def save(arch: str) -> Path:
        if arch not in made:
            made[arch] = save_tiny(tmp_path_factory.mktemp(arch), arch)
        return made[arch]

    return save


def trainer_on(device: str, model: Path, dtype: str, **settings: Any) -> Trainer:
    texts: dict[str, Any] = {"forget": made_up(6, 1), "retain": made_up(9, 2), "unseen": made_up(8, 4)}
    return ready(
        prepared(model, dtype=dtype, device=device, tokens_per_step=150, replay_weight=1.0, **texts, **settings),
        replay=made_up(6, 3),
    )


def test_the_simulation_finds_what_it_is_for() -> None:
    with SimulatedCuda() as gpu:
        here, other = torch.ones(3, 2, device="cuda"), torch.ones(3, 2)
        assert (here * 2).sum(0, keepdim=True).device.type == "cuda"
        for mistake in (lambda: here + other, lambda: here[torch.tensor([0, 1])], lambda: here.numpy()):
            with pytest.raises((RuntimeError, TypeError)):
                mistake()
        assert not gpu.waits
        packing.send(other, here.device)
        assert not gpu.waits
        reads: list[Callable[[], Any]] = [
            lambda: here.sum().item(), lambda: bool(here.sum() > 0), here.tolist, here.cpu, lambda: here[here > 0],
            lambda: other.to("cuda"), lambda: torch.tensor([1.0], device="cuda"), here.nonzero,
        ]  # fmt: skip
        for number, read in enumerate(reads):
            read()
            assert len(gpu.waits) == number + 1


@pytest.mark.parametrize(
    ("arch", "dtype", "way"),
    [
        ("llama", "float32", packing.MASK),
        ("llama", "bfloat16", packing.VARLEN),
        ("gemma3", "bfloat16", packing.VARLEN),  # with windows
        ("gpt2", "bfloat16", packing.VARLEN),
        ("gpt_neox", "bfloat16", packing.MASK),  # heads of 12
    ],
)
def test_a_step_is_that_of_the_cpu(arch: str, dtype: str, way: str, folder: Callable[[str], Path]) -> None:
    on_cpu = trainer_on("cpu", folder(arch), dtype)
    step = next(on_cpu.rows.plan.steps())
    right, grads = on_cpu.train_step(step), on_cpu.adapter.gradients
    with SimulatedCuda() as gpu:
        trainer = trainer_on("cuda", folder(arch), dtype)
        with trainer.loaded.autocast():
            assert packing.attention_way(trainer.loaded.base) == way
        assert trainer.rows.packed
        assert all(map(gpu.holds, (*trainer.model.parameters(), *trainer.model.buffers())))
        found, gradient = trainer.train_step(step), trainer.adapter.gradients.cpu()
    bound = EXACT if dtype == "float32" else ROUNDED
    assert (gradient - grads).norm() <= bound * grads.norm()
    assert found == pytest.approx(right, rel=bound, abs=bound / 10)


@pytest.mark.parametrize("loss", FORGET_LOSSES)
def test_a_step_does_not_wait_and_its_log_waits_once(loss: str, folder: Callable[[str], Path]) -> None:
    with SimulatedCuda() as gpu:
        trainer = trainer_on("cuda", folder("llama"), "bfloat16", loss=loss)
        steps = [*islice(trainer.rows.plan.steps(), 2)]
        with gpu.counting() as waits:
            taken = [trainer.take_step(step) for step in steps]
        assert not waits
        with gpu.counting() as waits:
            trainer.read(taken)
        assert len(waits) == 1


@pytest.fixture(autouse=True)
def _few_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs are taken however long they take: on the CPU there is nothing to gain."""
    for name, value in {"FASTER": float("inf"), "SHARES": (0.5, 1.0), "TRIED": (0.0, 1.0)}.items():
        monkeypatch.setattr(speed, name, value)


def test_captured_passes_give_the_gradient_of_every_step(folder: Callable[[str], Path]) -> None:
    with SimulatedCuda() as gpu:
        trainer = trainer_on("cuda", folder("llama"), "bfloat16", loss="dpo")
        weights = trainer.adapter.weights.detach().clone()
        line = speed.capture(trainer, FakeRecorder(CUDA))
        assert line.startswith("passes captured in"), line
        assert torch.equal(trainer.adapter.weights, weights)
        captured, trainer.rows.most_tokens = trainer.loaded.captured, 100  # more than one micro-batch a step
        for step in islice(trainer.rows.plan.steps(), 2):
            trainer.loaded.captured = None
            right = trainer.gradient(step), trainer.adapter.gradients.clone()
            trainer.loaded.captured = captured
            with gpu.counting() as waits:
                found = trainer.gradient(step), trainer.adapter.gradients
            assert not waits
            assert all((value - other).norm() <= 0.01 * other.norm() for value, other in zip(found, right, strict=True))


class Launches(TorchDispatchMode):
    """Counts what is dispatched on the device, is no view and computes or moves something: about a kernel each."""

    def __init__(self, gpu: SimulatedCuda) -> None:
        super().__init__()
        self.gpu, self.replaying, self.found = gpu, False, Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():  # so that what is made on the device is seen by the simulation as before
            result = func(*args, **(kwargs or {}))
        view = any(returned.alias_info and not returned.alias_info.is_write for returned in func._schema.returns)
        tensors = [leaf for leaf in tree_leaves((result, args)) if isinstance(leaf, torch.Tensor)]
        name = func.overloadpacket.__name__
        if not (self.replaying or view or "empty" in name) and any(map(self.gpu.holds, tensors)):
            self.found[name] += 1
        return result


class Replays(FakeRecorder):
    """Graphs whose operations are not counted: they are one launch."""

    launches: Launches

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        work()

        def replay() -> None:
            self.launches.replaying = True
            work()
            self.launches.replaying = False

        return replay


@pytest.mark.parametrize("rows", [4, 16])
def test_few_launches_are_outside_of_the_graphs(rows: int, folder: Callable[[str], Path]) -> None:
    """One step of `default`, whatever the rows; nothing of it sorts the places that states are taken from."""
    texts: dict[str, Any] = {"forget": made_up(rows, 1), "retain": made_up(rows, 2), "unseen": made_up(8, 4)}
    settings: dict[str, Any] = {"dtype": "bfloat16", "device": "cuda", "tokens_per_step": 40 * rows}
    with SimulatedCuda() as gpu:
        run = prepared(folder("llama"), recipe="default", **texts, **settings)
        trainer, recorder = ready(run, replay=made_up(rows, 3)), Replays(CUDA)
        recorder.launches = Launches(gpu)
        assert speed.capture(trainer, recorder).startswith("passes captured in")
        first, second = islice(trainer.rows.plan.steps(), 2)
        trainer.take_step(first)  # Adam's moments are made in it
        with recorder.launches:
            trainer.take_step(second)
    found = recorder.launches.found
    assert sum(found.values()) <= LAUNCHES, found
    assert found["sort"] <= 2  # of the targets that are dealt out
    assert not [name for name in found if name.startswith("index_put") or name == "_index_put_impl_"]


def test_steps_of_all_sizes_are_tried_and_replayed(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps of few rows, most of them short: some are a tenth of the largest."""
    tried: list[list[int]] = []
    take = speed._gradients
    monkeypatch.setattr(
        speed,
        "_gradients",
        lambda learner, steps: tried.append([step.number for step in steps]) or take(learner, steps),
    )
    forget = [*made_up(15, 1), *made_up(1, 2, longest=250)]
    with SimulatedCuda():
        run = prepared(folder("llama"), dtype="bfloat16", device="cuda", rows_per_step=1, epochs=3, forget=forget)
        trainer = ready(run)
        assert speed.capture(trainer, FakeRecorder(CUDA)).startswith("passes captured in")
        captured, steps = trainer.loaded.captured, [*trainer.rows.plan.steps()]
        sizes = [sum(trainer.rows.lengths(step)) for step in steps]
        assert captured is not None
        assert all(captured.takes(lengths) for step in steps for lengths in trainer.rows.batch_lengths(step))
        assert {min(sizes), max(sizes)} == {sizes[number] for number in tried[0]}
        assert min(sizes) < max(sizes) / 10


def test_targets_are_not_dealt_out_anew_while_passes_are_compared(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if rounding had exchanged targets from pass to pass."""
    calls = itertools.count(1)
    monkeypatch.setattr(target_kl, "dealt_out", lambda target_nll, *_: target_nll * next(calls))
    with SimulatedCuda():
        trainer = trainer_on("cuda", folder("llama"), "bfloat16", loss="target_kl")
        line = speed.capture(trainer, FakeRecorder(CUDA))
        assert line.startswith("passes captured in"), line
        assert trainer.rows.sides["forget"].guessed


class Warmed(FakeRecorder):
    """Warms up as often as a GPU does, and notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__(CUDA)
        self.asked: list[str] = []

    def warm_up(self, work: Callable[[], None]) -> None:
        self.asked.append("warm up")
        for _ in range(captured_passes.WARM_UPS):
            work()

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.asked.append("record")
        return super().record(work)


def test_few_passes_go_before_the_first_capture(folder: Callable[[str], Path]) -> None:
    """Of two sizes: two steps as they are, twice, and filled; a first pass and two warm-ups of each size."""
    recorder, passes = Warmed(), list[bool]()
    with SimulatedCuda():
        trainer = trainer_on("cuda", folder("llama"), "bfloat16")
        backbone(trainer.loaded.base).register_forward_pre_hook(lambda *_: passes.append("record" in recorder.asked))
        speed.capture(trainer, recorder)
    assert recorder.asked == ["warm up"] * 2 + ["record"] * 4
    assert passes.count(False) == 2 + 2 + 2 + 2 * (1 + 2)


def test_steps_from_all_of_a_long_run_are_looked_at(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths, seen = StepRows.batch_lengths, list[int]()
    monkeypatch.setattr(speed, "MOST_STEPS", 4)
    monkeypatch.setattr(StepRows, "batch_lengths", lambda rows, step: seen.append(step.number) or lengths(rows, step))
    with SimulatedCuda():
        trainer = trainer_on("cuda", folder("llama"), "bfloat16", max_steps=11)
        assert speed.capture(trainer, FakeRecorder(CUDA)).startswith("passes captured in")
    assert seen == [0, 3, 6, 9]


class Stale(FakeRecorder):
    """A graph that goes on giving what it gave when it was captured."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        work()
        return lambda: None


class Refused(FakeRecorder):
    """What is to be captured reads from the device."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        raise RuntimeError("operation not permitted when stream is capturing")


@pytest.mark.parametrize(
    ("recorder", "why"),
    [(Stale, "the gradient of replayed"), (Refused, "operation not permitted"), (FakeRecorder, "no faster (")],
)
def test_what_is_wrong_or_no_faster_is_not_captured(
    recorder: type[FakeRecorder], why: str, folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "FASTER", 0.0)
    with SimulatedCuda():
        trainer = trainer_on("cuda", folder("llama"), "bfloat16")
        weights = trainer.adapter.weights.detach().clone()
        assert speed.capture(trainer, recorder(CUDA)).startswith(f"not captured: {why}")
        assert trainer.loaded.captured is None
        assert torch.equal(trainer.adapter.weights, weights)
        assert not trainer.adapter.gradients.any()


class Full(FakeRecorder):
    """There is no memory for what is to be captured."""

    def warm_up(self, work: Callable[[], None]) -> None:
        work()
        raise torch.OutOfMemoryError("no memory")


@pytest.mark.parametrize(
    ("recorder", "most", "why"),
    [
        (FakeRecorder, None, "they leave too little memory"),
        (FakeRecorder, 2, "they leave too little memory"),
        (Full, None, "no memory"),
    ],
)
def test_passes_that_do_not_fit_leave_memory_and_rows_as_they_were(
    recorder: type[FakeRecorder],
    most: int | None,
    why: str,
    folder: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step runs out of memory while there are passes; or, once they have been there, with more than `most` units."""
    made: list[weakref.ref[Any]] = []
    begin, backward = captured_passes._Pass.__init__, Trainer._backward

    def noted(self: Any, *given: Any) -> None:
        begin(self, *given)
        made.append(weakref.ref(self))

    def full(self: Trainer, sides: Any, places: Any, counts: Any) -> torch.Tensor:
        if recorder is not Full and (any(ref() for ref in made) or (made and most and len(places) > most)):
            raise torch.OutOfMemoryError
        return backward(self, sides, places, counts)

    monkeypatch.setattr(captured_passes._Pass, "__init__", noted)
    monkeypatch.setattr(Trainer, "_backward", full)
    with SimulatedCuda():
        trainer = trainer_on("cuda", folder("llama"), "bfloat16")
        before = trainer.rows.most_rows
        gc.collect()
        gc.disable()
        try:
            assert speed.capture(trainer, recorder(CUDA)) == f"not captured: {why}"
            assert made
            assert not any(ref() for ref in made)
        finally:
            gc.enable()
    assert trainer.loaded.captured is None
    assert trainer.rows.most_rows == before


def test_rows_that_are_filled_up_wrongly_are_not_captured(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions that do not start again with each row, in the filled passes alone."""
    fill = captured_passes._Pass.fill

    def wrong(self: Any, ids: torch.Tensor, lengths: Sequence[int]) -> None:
        fill(self, ids, lengths)
        self._positions.copy_(self._positions.flip(1))

    monkeypatch.setattr(captured_passes._Pass, "fill", wrong)
    with SimulatedCuda():
        trainer = trainer_on("cuda", folder("llama"), "bfloat16")
        assert speed.capture(trainer, FakeRecorder(CUDA)).startswith("not captured: the gradient of filled passes")
        assert trainer.loaded.captured is None


def test_a_gradient_that_is_no_number_is_not_captured(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "_apart", lambda *_: float("nan"))
    with SimulatedCuda():
        trainer = trainer_on("cuda", folder("llama"), "bfloat16")
        assert speed.capture(trainer, FakeRecorder(CUDA)).startswith(
            "not captured: the gradient of filled passes is nan"
        )


def test_graphs_go_before_a_step_is_halved(folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with SimulatedCuda():
        trainer = trainer_on("cuda", folder("llama"), "bfloat16")
        speed.capture(trainer, FakeRecorder(CUDA))

        def full(*_: object) -> None:
            raise torch.OutOfMemoryError

        monkeypatch.setattr(trainer.loaded.captured, "states", full)
        before = trainer.rows.most_rows
        trainer.train_step(next(trainer.rows.plan.steps()))
        assert trainer.loaded.captured is None
        assert trainer.rows.most_rows == before


def test_graphs_go_before_an_evaluation_step_fails(folder: Callable[[str], Path]) -> None:
    with SimulatedCuda():
        trainer = trainer_on("cuda", folder("llama"), "bfloat16")
        speed.capture(trainer, FakeRecorder(CUDA))
        trainer.loaded.told()

        def pass_beside() -> str:
            if trainer.loaded.captured is not None:
                raise torch.OutOfMemoryError
            return "done"

        assert speed.beside_graphs(trainer, pass_beside) == "done"
        assert "no longer captured" in trainer.loaded.told()[0]

        def full() -> None:
            raise torch.OutOfMemoryError

        with pytest.raises(torch.OutOfMemoryError):
            speed.beside_graphs(trainer, full)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"dtype": "float32"}, "flash attention"),
        ({"gradient_checkpointing": True}, "twice"),
        ({"loss": "rmu"}, "inner"),
    ],
)
def test_what_cannot_be_captured_is_said(settings: dict[str, Any], why: str, folder: Callable[[str], Path]) -> None:
    with SimulatedCuda():
        trainer = trainer_on("cuda", folder("llama"), **{"dtype": "bfloat16", **settings})
        assert why in speed.capture(trainer, FakeRecorder(CUDA))


def test_sums_of_bfloat16_products_are_not_rounded_in_parts(folder: Callable[[str], Path]) -> None:
    products = torch.backends.cuda.matmul
    products.allow_bf16_reduced_precision_reduction = True  # as by default
    with SimulatedCuda():
        load_model(str(folder("llama")), device="cuda")
    assert products.allow_bf16_reduced_precision_reduction is False


def test_what_graphs_hold_is_not_free(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"kept for the next tensors": 300, "kept by graphs": 500, "tensors": 200}
    for name, function in {
        "mem_get_info": lambda *_: (2000 - sum(held.values()), 2000),
        "memory_reserved": lambda *_: sum(held.values()),
        "memory_allocated": lambda *_: held["tensors"],
        "empty_cache": lambda: held.pop("kept for the next tensors"),
    }.items():
        monkeypatch.setattr(torch.cuda, name, function)
    assert memory.free_memory(CUDA) == 2000 - 500 - 200


def test_little_memory_makes_small_blocks_of_logits(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with SimulatedCuda():
        plenty = load_model(str(folder("llama")), dtype="float32", device="cuda").head.block
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (2**30, 2**30))
        assert (load_model(str(folder("llama")), dtype="float32", device="cuda").head.block or 0) * 24 < 2**30 / 9
    assert plenty == CHUNK_ELEMENTS["cuda"]


def test_four_bits_without_bitsandbytes(folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "find_spec", lambda name: None)
    with SimulatedCuda(), pytest.raises(ModelError, match=r"^--load-in-4bit: .*pip install 'expunge\[4bit\]'$"):
        load_model(str(folder("llama")), device="cuda", load_in_4bit=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_model_with_an_adapter_is_folded_before_it_is_moved(
    dtype: str, folder: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32 a GPU would need twice the memory of what it is rounded to again."""
    base = AutoModelForCausalLM.from_pretrained(folder("llama"), dtype=torch.bfloat16)
    base.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(folder("llama")).save_pretrained(tmp_path / "base")
    model = get_peft_model(base.float(), LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "up_proj"]))
    for parameter in model.parameters():
        parameter.data += 0.02 * parameter.requires_grad
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    rows = [list(range(3, 3 + length)) for length in LENGTHS]
    right = sequence_logps(load_model(str(tmp_path / "adapter"), dtype=dtype, device="cpu"), rows)
    moved: list[set[torch.dtype]] = []
    move = load.move

    def watched(model: torch.nn.Module, place: Any) -> None:
        if getattr(place, "type", "") == "cuda":
            linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
            moved.append({layer.weight.dtype for layer in linear})
        move(model, place)

    monkeypatch.setattr(load, "move", watched)
    with SimulatedCuda() as gpu:
        loaded = load_model(str(tmp_path / "adapter"), dtype=dtype, device="cuda")
        assert all(map(gpu.holds, loaded.model.parameters()))
        found = sequence_logps(loaded, rows)
    assert moved == [{getattr(torch, dtype)}]
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-2, atol=1e-2)


def test_an_evaluation_waits_once_a_pass(folder: Callable[[str], Path]) -> None:
    rows = [list(range(3, 3 + length)) for length in LENGTHS]
    right = sequence_logps(load_model(str(folder("llama")), dtype="float32", device="cpu"), rows)
    with SimulatedCuda() as gpu:
        loaded = load_model(str(folder("llama")), dtype="float32", device="cuda")
        with gpu.counting() as waits:
            found = sequence_logps(loaded, rows)
        assert len(waits) <= 2  # transformers' mask, and the result
        with gpu.counting() as waits:
            token_records(loaded, made_up(9))
        assert len(waits) <= 2
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("arch", "settings", "why"),
    [
        ("llama", {}, None),
        ("gpt2", {"max_position_embeddings": 48}, None),  # which some rows fill
        ("gemma3", {"sliding_window": 512}, None),
        ("mistral", {}, "rows may be longer than the 8 tokens that a layer sees"),
        ("gemma2", {}, "attention is eager"),
    ],
)
def test_decoding_is_captured_and_waits_once_in_eight_tokens(
    arch: str, settings: dict[str, Any], why: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[object] = []

    class Counted(FakeRecorder):
        def record(self, work: Callable[[], None]) -> Callable[[], None]:
            recorded.append(work)
            return super().record(work)

    monkeypatch.setattr(decoding, "Recorder", Counted)
    model = str(save_tiny(tmp_path, arch, **settings))
    rows = [list(range(3, 3 + length)) for length in LENGTHS]
    said = greedy(load_model(model, dtype="float32", device="cpu"), rows, max_new_tokens=28)
    assert sum(len(answer) == 28 for answer in said) > 1, "some go on to the end"
    with SimulatedCuda() as gpu:
        loaded = load_model(model, dtype="float32", device="cuda")
        counts = []
        for tokens in (12, 28):
            with gpu.counting() as waits:
                assert greedy(loaded, rows, max_new_tokens=tokens) == [answer[:tokens] for answer in said]
            counts.append(len(waits))
        if arch == "gpt2":  # rows that no one uses any more stay within the context
            with monkeypatch.context() as small:
                small.setattr("expunge.evaluation.generate.cached_tokens", lambda loaded: 16 * decoding.COLUMNS)
                assert greedy(loaded, rows * 4, max_new_tokens=28) == said * 4
        monkeypatch.setattr(decoding, "COLUMNS", 16)  # beyond which a cache grew on the way
        recorded.clear()
        assert greedy(loaded, rows, max_new_tokens=28) == said
        assert len(recorded) == (why is None), "one capture serves all tokens"
        told = [note for note in loaded.told() if not note.startswith("rows: padded")]
        assert told == ([f"decoding is not captured: {why}"] if why else [])
    assert arch != "llama" or counts[1] - counts[0] == 2


def test_many_draws_take_no_more_memory_than_few(
    folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the cache, all tokens to come included, nor the logits of the rows that are decoded side by side."""
    monkeypatch.setattr(decoding, "Recorder", FakeRecorder)
    seen: list[tuple[int, int]] = []
    steps = decoding.Flight.steps

    def watched(self: Any, tokens: Sequence[int], count: int) -> list[list[int]]:
        seen.append((len(tokens), self._room[0] * self._room[1]))
        return steps(self, tokens, count)

    monkeypatch.setattr(decoding.Flight, "steps", watched)
    with SimulatedCuda():
        loaded = load_model(str(folder("llama")), dtype="float32", device="cuda")
        fits = decoding.tokens_that_fit(loaded)
        assert fits is not None
        for free, block, most in ((fits, 50 * 131, 50), (100 * decoding.COLUMNS, 2**26, 96)):
            monkeypatch.setattr(decoding, "tokens_that_fit", lambda _, free=free: free)
            loaded.head = replace(loaded.head, block=block)
            seen.clear()
            said = sample(loaded, [[5, 6, 7]] * 300, max_new_tokens=12)
            assert len({*map(tuple, said)}) > 100
            assert most // 2 <= max(rows for rows, _ in seen) <= most
            assert max(area for _, area in seen) <= free


def test_norms_of_gradients_are_read_once(folder: Callable[[str], Path]) -> None:
    rows = made_up(4)
    right = gradient_norms(load_model(str(folder("llama")), dtype="float32", device="cpu"), rows)
    with SimulatedCuda() as gpu:
        loaded = load_model(str(folder("llama")), dtype="float32", device="cuda")
        with gpu.counting() as waits:
            assert gradient_norms(loaded, rows) == pytest.approx(right, rel=1e-4)
        assert len(waits) <= len(rows) + 1  # transformers' masks, and the result


class Empty(FakeRecorder):
    """A capture on the stream of another device: nothing is in the graph, and the work was done meanwhile."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        work()
        return lambda: None


def test_a_graph_that_computes_nothing_writes_no_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "Recorder", Empty)
    model = str(save_tiny(tmp_path, "llama"))
    rows = [list(range(3, 3 + length)) for length in LENGTHS]
    said = greedy(load_model(model, dtype="float32", device="cpu"), rows, max_new_tokens=12)
    with SimulatedCuda():
        loaded = load_model(model, dtype="float32", device="cuda")
        assert greedy(loaded, rows, max_new_tokens=12) == said
        assert loaded.told() == ["decoding is not captured: its logits are 1 from those of the step"]


def test_replay_texts_are_those_of_the_cpu(folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "Recorder", FakeRecorder)
    monkeypatch.setitem(replay.BATCH, "cuda", replay.BATCH["cpu"])
    monkeypatch.setitem(decoding.TOKENS_PER_READ, "cuda", 1)  # as many draws
    known = [TokenizedExample("text", list(range(3, 40)), 1)]
    texts = []
    for device in ("cpu", "cuda"):
        with SimulatedCuda():
            loaded = load_model(str(folder("llama")), dtype="float32", device=device)
            texts.append(replay.write_texts(loaded, known, known, tokens=300, seed=1))
    assert texts[0] == texts[1]


@pytest.mark.parametrize(("free", "most"), [(2**36, 512), (2**24, 128), (0, decoding.ROWS)])
def test_replay_texts_are_written_in_a_share_of_the_free_memory(
    free: int, most: int, folder: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    known, sizes = [TokenizedExample("text", list(range(3, 40)), 1)], []
    with SimulatedCuda():
        loaded = load_model(str(folder("llama")), dtype="float32", device="cuda")
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (free, 2**36))
        monkeypatch.setattr(replay, "_continue", lambda _, begun, __: sizes.append(len(begun)) or [(1, 2)] * len(begun))
        replay.write_texts(loaded, known, known, tokens=100, seed=1)
        replay.seconds_per_token(loaded, known)
    assert {*sizes} == {most}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Texts to forget, to keep and unseen ones."""
    chance = random.Random(1)
    texts = [{"input": "", "output": " ".join(chance.choices("abcdefghijkl", k=20))} for _ in range(48)]
    for name, part in (("forget", texts[:16]), ("retain", texts[16:32]), ("holdout", texts[32:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    return {name: str(tmp_path / f"{name}.jsonl") for name in ("forget", "retain", "holdout")}


def test_a_whole_run_is_that_of_the_cpu(
    folder: Callable[[str], Path], files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Trained, evaluated, scaled and saved; the log is read after steps 2, 3 and 4."""
    monkeypatch.setitem(STEPS_PER_READ, "cuda", 2)
    lines = {}
    for device in ("cpu", "cuda"):
        config = UnlearnConfig(
            model=str(folder("llama")), **files, output=str(tmp_path / device), device=device, dtype="float32",
            recipe="default", replay_weight=0.0, lora_rank=2, tokens_per_step=200, max_steps=4, eval_every=3,
            compile="off", prompt_format="space", end_of_text="yes",
        )  # fmt: skip
        if device == "cuda":
            with SimulatedCuda():
                loop.unlearn(config)
        else:
            loop.unlearn(config)
        lines[device] = [json.loads(line) for line in (tmp_path / device / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines["cuda"]] == [1, 2, 3, 4]
    assert {name: resumed_settings(str(tmp_path / name))["save_every"] for name in lines} == {"cpu": 100, "cuda": 1000}
    for entry, right in zip(lines["cuda"], lines["cpu"], strict=True):
        assert entry["loss"] == pytest.approx(right["loss"], rel=1e-3)
        assert ("validation" in entry) == ("validation" in right) == (entry["step"] > 2)


def test_a_dry_run_times_the_steps_that_a_run_would_take(
    folder: Callable[[str], Path], files: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Together: the host waits after the first, which is not timed, and after the last."""
    monkeypatch.setattr(speed, "Recorder", FakeRecorder)
    read, together = Trainer.read, list[int]()
    monkeypatch.setattr(Trainer, "read", lambda trainer, taken: together.append(len(taken)) or read(trainer, taken))
    with SimulatedCuda():
        config = UnlearnConfig(
            model=str(folder("llama")), **files, output="runs/never", device="cuda", dtype="bfloat16", recipe="default",
            replay_weight=0.0, lora_rank=2, tokens_per_step=200, max_steps=4, prompt_format="space", end_of_text="yes",
        )  # fmt: skip
        found = forecast(config, Reporter())
    assert found.timed_steps == 3
    assert together == [1, 3]
    assert "passes captured in" in capsys.readouterr().err
