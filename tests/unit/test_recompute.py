"""--gradient-checkpointing computes the layers again in the backward pass, and changes no gradient."""

import pytest
import torch

from expunge.model.adapter import add_adapter, trainable
from expunge.model.layers import recompute_layers
from expunge.model.load import load_model
from expunge.model.logps import final_states, lay_out
from tiny import save_tiny


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("arch", ["gpt2", "olmo"])  # gpt2 has dropout in its configuration
def test_same_gradients_with_every_layer_run_twice(tmp_path, arch, packed):
    loaded = load_model(str(save_tiny(tmp_path / "model", arch)), dtype="float32", device="cpu")
    model = add_adapter(loaded, rank=2, alpha=2.0, modules="all-linear", seed=0)
    sequences = torch.arange(40).view(2, 20).tolist()
    loaded.packable_length *= packed
    runs = []
    attention = next(module for name, module in loaded.base.named_modules() if name.endswith((".attn", ".self_attn")))
    attention.register_forward_hook(lambda *_: runs.append(1))

    def gradients() -> list[torch.Tensor]:
        final_states(loaded, lay_out(loaded, sequences)).square().sum().backward()
        found = [parameter.grad for parameter in trainable(model)]
        model.zero_grad()
        return found

    plain = gradients()
    assert len(runs) == 1
    recompute_layers(loaded.base)
    again = gradients()
    assert len(runs) == 3
    for one, other in zip(plain, again, strict=True):
        assert torch.equal(one, other)


def test_no_generator_is_read(tmp_path, monkeypatch):
    """While a GPU captures a pass, to read the state of its generator is an error: no decoding step was captured."""

    def read() -> torch.Tensor:
        raise RuntimeError("a generator's state is read")

    loaded = load_model(str(save_tiny(tmp_path / "model", "olmo")), dtype="float32", device="cpu")
    recompute_layers(loaded.base)
    monkeypatch.setattr(torch, "get_rng_state", read)
    with torch.no_grad():
        assert len(loaded.base(torch.arange(20)[None]).logits[0]) == 20
