"""Compiled layers give the gradients of the layers as they are, or a line that says why they are not compiled."""

from pathlib import Path

import pytest
import torch

from expunge.kernels import token_logps
from expunge.model import compiling, packing
from expunge.model.adapter import add_adapter
from expunge.model.compiling import compile_layers
from expunge.model.flat_adapter import FlatAdapter
from expunge.model.layers import recompute_layers
from expunge.model.load import LoadedModel, load_model
from expunge.model.logps import final_states, lay_out
from tiny import save_tiny


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedModel:
    torch._dynamo.reset()
    monkeypatch.setattr(packing, "attention_way", lambda model: packing.MASK)
    loaded = load_model(str(save_tiny(tmp_path, "llama", num_hidden_layers=3)), dtype="float32", device="cpu")
    add_adapter(loaded, rank=2, alpha=4.0, modules="all-linear", seed=0)
    return loaded


def gradient(loaded: LoadedModel, adapter: FlatAdapter, lengths: tuple[int, ...]) -> torch.Tensor:
    adapter.gradients.zero_()
    batch = lay_out(loaded, [list(range(1, 1 + length)) for length in lengths])
    (-token_logps(final_states(loaded, batch)[:-1], loaded.head, batch.flat_ids[1:]).mean()).backward()
    return adapter.gradients.clone()


def test_same_gradients_whatever_the_rows(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiling, "BACKEND", "eager")  # the graphs as they are found; bench/gpu.py runs the real one
    adapter = FlatAdapter(loaded)
    rows = ((20, 12), (4,) * 8)  # as many tokens: one graph
    plain = [gradient(loaded, adapter, lengths) for lengths in rows]
    torch._dynamo.utils.counters.clear()
    assert "layers compiled in" in compile_layers(loaded, lambda: gradient(loaded, adapter, rows[0]))
    for lengths, right in zip(rows, plain, strict=True):
        torch.testing.assert_close(gradient(loaded, adapter, lengths), right, rtol=1e-4, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # the first layer, and all others


def test_what_cannot_be_compiled_runs_as_it_is(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no compiler here")

    monkeypatch.setattr(compiling, "BACKEND", broken)
    adapter = FlatAdapter(loaded)
    plain = gradient(loaded, adapter, (9, 5))
    line = compile_layers(loaded, lambda: gradient(loaded, adapter, (9, 5)))
    assert line.startswith("not compiled: ")
    assert "no compiler here" in line
    assert torch.equal(gradient(loaded, adapter, (9, 5)), plain)


def test_recomputed_layers_are_not_compiled(loaded: LoadedModel) -> None:
    recompute_layers(loaded.base)
    assert "gradient checkpointing" in compile_layers(loaded, lambda: pytest.fail("was tried"))
