"""The layer that a forget loss reads: one that text comes to, behind at least a part of the adapter."""

from pathlib import Path

import pytest

from dev.models import LAYERS, tiny
from expunge.data.sampler import Step
from expunge.errors import ConfigError
from expunge.model.layers import decoder_layers
from expunge.train.before import find_reference
from expunge.train.trainer import Trainer
from expunge.utils.progress import Reporter
from tiny import save_tokenizer
from training import made_up, prepared


def trainer(folder: Path, arch: str, layer: int, **settings: str) -> Trainer:
    tiny(arch).save_pretrained(folder)
    save_tokenizer(folder, "bytelevel")
    rows = made_up(2, vocabulary=130)
    found = Trainer(prepared(folder, forget=rows, retain=rows, loss="rmu", loss_args=f"layer={layer}", **settings))
    find_reference(found, Reporter(quiet=True))
    return found


@pytest.mark.parametrize("layer", [-1, 0, 1])
@pytest.mark.parametrize("arch", ["llama", "gemma3", "bart"])
def test_only_layers_that_text_comes_to_are_counted(arch: str, layer: int, tmp_path: Path) -> None:
    """Not those of an image tower, which stand before them."""
    run = trainer(tmp_path, arch, layer)
    assert run.train_step(Step(0, [0], [1]))["grad_norm"] > 0
    layers = decoder_layers(run.loaded.base)
    assert (len(layers) > LAYERS) == (arch == "gemma3")
    assert run.layer is layers[-LAYERS:][max(layer, 0)]


@pytest.mark.parametrize("arch", ["ctrl", "openai-gpt"])
@pytest.mark.parametrize("layer", [-1, 0])
def test_a_model_whose_layers_are_not_marked_is_refused(arch: str, layer: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--loss: it reads an inner layer, and this architecture's layers cannot"):
        trainer(tmp_path, arch, layer)


def test_a_number_beyond_the_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--loss-args layer=2: the model has 2 layers"):
        trainer(tmp_path, "gemma3", 2)


def test_a_layer_before_the_whole_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--loss-args layer=0: no part of the adapter stands before"):
        trainer(tmp_path, "llama", 0, target_modules="model.layers.1.self_attn.q_proj")
