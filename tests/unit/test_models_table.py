"""A sample of the architectures of docs/models.md holds what the page says; all of them where there is time."""

from pathlib import Path

import pytest
import torch
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dev.models import CHECKS, PAGE, REFUSED, ROWS, SAMPLE, examine, tiny
from expunge.model.adapter import add_adapter, trainable
from expunge.model.load import load_model
from expunge.model.logps import final_states, lay_out
from tiny import save_tokenizer

ENCODERS = {"bert"}
DECODERS = [line.split("|")[1].strip() for line in PAGE.read_text().splitlines() if " is_decoder |" in line]
"""Rows of encoders that a setting makes decoders."""


@pytest.mark.parametrize("name", SAMPLE)
def test_an_architecture_holds_what_the_page_says(name: str, tmp_path: Path) -> None:
    row = examine(name, tmp_path)
    assert row.whole == (name not in ENCODERS), row.why
    if name in ENCODERS:
        assert REFUSED in row.why


def test_what_fills_a_packed_sequence_up_leaves_the_gradient_finite(tmp_path: Path) -> None:
    """Token 0 pads, its embedding is zero, and the gradient of Gemma 3n in a row of zeros is not finite."""
    tiny("gemma3n_text").save_pretrained(tmp_path)
    save_tokenizer(tmp_path, "bytelevel")
    loaded = load_model(str(tmp_path), dtype="bfloat16", device="cpu")
    add_adapter(loaded, rank=2, alpha=4.0, modules="all-linear", seed=0)
    batch = lay_out(loaded, ROWS)
    assert batch.packed
    assert batch.input_ids.shape[1] > sum(batch.lengths)

    final_states(loaded, batch).square().sum().backward()

    found = [parameter.grad for parameter in trainable(loaded.model) if parameter.grad is not None]
    assert found
    assert all(torch.isfinite(grad).all() for grad in found)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), *DECODERS])
def test_every_architecture_that_holds_on_the_page_holds(name: str, tmp_path: Path) -> None:
    if f"| {name} |{' yes |' * len(CHECKS)}" not in PAGE.read_text():
        pytest.skip("does not hold today")
    architecture, *settings = name.split()
    assert examine(architecture, tmp_path, **dict.fromkeys(settings, True)).whole
