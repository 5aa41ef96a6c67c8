"""The model card: metadata that the Hub reads, sizes and losses, nothing of the data."""

from dataclasses import fields

import pytest
import yaml

from expunge.config import UnlearnConfig
from expunge.runs.card import merged_card, model_card
from expunge.runs.manifest import NOT_PART_OF_THE_RESULT
from expunge.runs.settings import ONE_START

MANIFEST = {
    "base": {"id": "org/model-1B", "license": "mit"},
    "settings": {
        "model": "/srv/private/model",
        "forget": "secret-names.jsonl",
        "retain": "kept.jsonl",
        "lora_rank": 16,
    },
    "terms": [{"name": "retain_kl", "weight": 1.5, "formula": "KL(p || p_ref)", "source": "arXiv 2503.13690"}],
    "steps": 4321,
    "rows": {"forget": 1234, "retain": 6, "holdout": 0},
    "loss_texts": {"forget": 1234, "retain": 6},
    "tokens": {"forget": 56789, "retain": 70, "holdout": 0},
    "loss_nats_per_completion_token": {
        "forget": {"before": 0.25, "after": 7.5},
        "retain": {"before": 1.125, "after": 1.0},
    },
    "versions": {"expunge": "0.1.0"},
}


def card() -> str:
    return model_card(MANIFEST)


def test_metadata_is_yaml_that_names_the_base() -> None:
    start, metadata, _ = card().split("---\n", 2)
    assert start == ""
    found = yaml.safe_load(metadata)
    assert found["base_model"] == "org/model-1B"
    assert (found["base_model_relation"], found["license"]) == ("adapter", "mit")
    assert "/srv/private" not in card()
    assert found["library_name"] == "peft"


@pytest.mark.parametrize(
    ("base", "on", "named", "loaded"),
    [
        ({"id": "org/model-1B"}, "abc", "`org/model-1B`", "org/model-1B"),
        ({}, "tiny", "`tiny`", "tiny"),
        ({"id": "org/model-1B"}, None, "the model in the folder `base` beside it", "path/to/this/folder/base"),
    ],
)
def test_an_adapter_on_an_adapter_is_for_the_base_that_its_files_name(
    base: dict[str, str], on: str | None, named: str, loaded: str
) -> None:
    text = model_card({**MANIFEST, "base": base, "adapter_base": on})
    assert f"A LoRA adapter for {named} that makes it forget" in text
    assert f'from_pretrained("{loaded}")' in text
    assert ("base_model: org/model-1B" in text) == (on == "abc")


def test_the_steps_that_were_taken_are_shown() -> None:
    assert "| optimizer steps | 4,321 |" in card()


def test_sizes_losses_and_method_are_shown() -> None:
    text = card()
    assert "| forget | 1,234 | 0.25 | 7.50 |" in text
    assert "| retain | 6 | 1.12 | 1.00 |" in text
    assert "holdout" not in text
    assert "| retain_kl | 1.5 | `KL(p \\|\\| p_ref)` | arXiv 2503.13690 |" in text
    assert "| lora_rank | 16 |" in text


def test_settings_of_free_words_stay_out_but_for_those_of_the_method() -> None:
    free = (str, str | None)
    words = {field.name: f"/somewhere/{field.name}" for field in fields(UnlearnConfig) if field.type in free}
    words = {name: word for name, word in words.items() if name not in NOT_PART_OF_THE_RESULT | ONE_START}
    assert {"title", "origin", "data"} < {*words}
    text = model_card({**MANIFEST, "settings": words})
    shown = {name for name, word in words.items() if word in text}
    assert shown == {"recipe", "loss", "loss_args", "target_modules", "device", "revision"}


def test_names_of_the_data_files_stay_out() -> None:
    assert "secret-names" not in card()
    assert "kept.jsonl" not in card()


@pytest.mark.parametrize(("texts", "shown"), [(3, "| adapter | 3.000 |"), (4, "| adapter | 3.141 |")])
def test_a_merged_models_card_tells_losses_of_few_texts_as_coarsely_as_the_manifest(texts: int, shown: str) -> None:
    losses = {"untouched": 0.1234, "adapter": 3.1412, "merged": 3.1413}
    assert shown in merged_card(MANIFEST | {"loss_texts": {"forget": texts}}, losses, {"dtype": "float32"})
