"""The one schema: recipes, ranges, and one name for a setting everywhere."""

import re
from dataclasses import fields
from typing import Any

import pytest

from expunge.config import RECIPES, EvaluateConfig, UnlearnConfig
from expunge.errors import ConfigError

GIVEN = {"model": "m", "forget": "f.jsonl", "retain": "r.jsonl", "output": "run"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_valid_and_name_known_settings(recipe: str) -> None:
    config = UnlearnConfig(recipe, **GIVEN, holdout="h.jsonl")
    config.validate()
    assert config.recipe == recipe
    for name, value in RECIPES[recipe].items():
        assert getattr(config, name) == value


def test_settings_win_over_the_recipe() -> None:
    assert UnlearnConfig(recipe="paper", **GIVEN, lora_rank=9).lora_rank == 9


def test_paper_code_is_the_paper_but_for_what_its_code_does_differently() -> None:
    paper, code = (UnlearnConfig(recipe, **GIVEN) for recipe in ("paper", "paper-code"))
    different = {f.name for f in fields(paper) if getattr(paper, f.name) != getattr(code, f.name)}
    assert different == {"recipe", "kl_direction", "mix", "join", "end_of_text"}


def test_unknown_recipe_and_setting() -> None:
    with pytest.raises(ConfigError, match="--recipe best: unknown"):
        UnlearnConfig(recipe="best", **GIVEN)
    with pytest.raises(ConfigError, match="unknown setting colour"):
        UnlearnConfig(**GIVEN, colour="red")


REFUSED: list[tuple[str, Any]] = [
    ("model", ""),
    ("output", ""),
    ("forget", None),
    ("retain", None),
    ("recipe", "best"),
    ("epochs", 0),
    ("max_steps", 0),
    ("learning_rate", 0.0),
    ("learning_rate", float("nan")),
    ("learning_rate", 1.0),
    ("warmup", 1.0),
    ("warmup", -0.1),
    ("max_grad_norm", -1.0),
    ("max_grad_norm", float("nan")),
    ("beta", 0.0),
    ("beta", float("inf")),
    ("forget_weight", 0.0),
    ("retain_weight", -1.0),
    ("kl_weight", float("inf")),
    ("lora_rank", 0),
    ("lora_alpha", 0.0),
    ("lora_alpha", float("nan")),
    ("target_modules", " , "),
    ("tokens_per_step", 0),
    ("rows_per_step", 0),
    ("rows_per_step", 1),
    ("retain_per_forget", 0.0),
    ("retain_per_forget", float("nan")),
    ("max_length", 1),
    ("save_every", -1),
    ("seed", -1),
    ("seed", 2**32),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_values_out_of_range_are_refused_by_their_flag(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-")) as error:
        UnlearnConfig(**{**GIVEN, name: value}).validate()
    assert "\n" not in str(error.value)


def test_contradictions_are_refused() -> None:
    for settings, phrase in (
        ({"overwrite": True, "resume": True}, "--overwrite and --resume"),
        ({"shard_base": True, "load_in_4bit": True}, "--shard-base cannot share 4-bit weights"),
        ({"shard_base": True, "dry_run": True}, "leave --shard-base out"),
        ({"mix": "random"}, "--mix random needs --rows-per-step"),
        ({"benchmark": "semeval"}, "--benchmark semeval needs --data"),
        ({"benchmark": "semeval", "data": "d"}, "leave --forget and --retain out"),
    ):
        with pytest.raises(ConfigError, match=phrase):
            UnlearnConfig(**{**GIVEN, **settings}).validate()


def test_retain_is_needed_only_where_a_term_uses_it() -> None:
    without = {**GIVEN, "retain": None}
    UnlearnConfig(**without, retain_weight=0.0, kl_weight=0.0).validate()
    for settings in ({"retain_weight": 0.0}, {"kl_weight": 0.0}):
        with pytest.raises(ConfigError, match="--retain is missing"):
            UnlearnConfig(**without, **settings).validate()


@pytest.mark.parametrize("schema", [UnlearnConfig, EvaluateConfig])
def test_every_setting_is_documented(schema: type) -> None:
    documented = re.findall(r"^ {8}(\w+): ", schema.__doc__ or "", re.MULTILINE)
    assert set(documented) == {f.name for f in fields(schema)}


@pytest.mark.parametrize(
    ("name", "value"),
    [("max_steps", "5"), ("epochs", 2.5), ("epochs", True), ("schedule", "step"), ("overwrite", 1), ("model", None)],
)
def test_a_value_of_the_wrong_type_is_named(name: str, value: object) -> None:
    settings = {"model": "m", "forget": "f", "retain": "r", "output": "o", name: value}
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} "):
        UnlearnConfig(**settings).validate()
