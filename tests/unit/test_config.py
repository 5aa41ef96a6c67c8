"""The one schema: recipes, ranges, groups, and one name for a setting everywhere."""

import re
from copy import copy
from dataclasses import MISSING, asdict, fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from expunge.cli.commands import recorded
from expunge.config import RECIPES, CalibrateConfig, ElicitConfig, EvaluateConfig, MergeConfig, UnlearnConfig
from expunge.config.nested import by_group, flat
from expunge.config.unlearn import GROUPS
from expunge.errors import ConfigError
from expunge.losses import FORGET_LOSSES, make_forget_loss

GIVEN = {"model": "m", "forget": "f.jsonl", "retain": "r.jsonl", "output": "run"}


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_are_valid_and_name_known_settings(recipe: str) -> None:
    config = UnlearnConfig(recipe=recipe, **GIVEN, holdout="h.jsonl")
    config.validate()
    for name, value in RECIPES[recipe].items():
        assert getattr(config, name) == value
    make_forget_loss(config.loss, config.loss_args)


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("loss", FORGET_LOSSES)
def test_another_loss_in_a_recipe_has_its_own_parameters(recipe: str, loss: str) -> None:
    config = UnlearnConfig(recipe=recipe, loss=loss, **GIVEN)
    make_forget_loss(config.loss, config.loss_args)  # the recipe's `level=token` is of `npo` alone
    assigned = UnlearnConfig(recipe=recipe, **GIVEN)
    assigned.loss = loss
    assert assigned == config
    default = RECIPES[recipe].get("loss", "target_kl")
    assigned.loss = default
    assert assigned.loss_args == RECIPES[recipe].get("loss_args", "")
    kept = UnlearnConfig(recipe=recipe, loss="npo", loss_args="beta=0.1", **GIVEN)
    assert kept.loss_args == "beta=0.1"


def test_without_a_recipe_settings_are_those_of_the_default_one() -> None:
    config = UnlearnConfig(**GIVEN)
    assert config.recipe == "default"
    assert vars(config) == {**vars(UnlearnConfig(recipe="default", **GIVEN)), "given": GIVEN}


@pytest.mark.parametrize("recipe", ["npo", "paper"])
def test_what_is_given_wins_over_the_recipe_though_it_is_the_default(recipe: str) -> None:
    default = UnlearnConfig(**GIVEN)
    for name in RECIPES[recipe]:
        config = UnlearnConfig(recipe=recipe, **GIVEN, **{name: getattr(default, name)})
        assert getattr(config, name) == getattr(default, name), name
        assert config.is_given(name)
    assert not UnlearnConfig(recipe=recipe, **GIVEN).is_given("loss")
    assert UnlearnConfig(recipe="paper", **GIVEN, lora_rank=9).lora_rank == 9


def test_without_unseen_texts_nothing_steers_and_what_was_given_stands() -> None:
    first = UnlearnConfig(**GIVEN, kl_weight=7.0)
    other = first.without_unseen()
    assert (other.recipe, other.eval_every, other.kl_weight) == ("default", 0, 7.0)
    assert (first.schedule, other.schedule) == ("stable_decay", "constant"), "it ends at its last step, not before"
    assert first.changed(schedule="linear").without_unseen().schedule == "linear"
    assert other.is_given("kl_weight")
    assert not other.is_given("loss")
    assert first.eval_every is None, "the first is as it was"


@pytest.mark.parametrize("recipe", ["default", "npo"])
def test_settings_are_changed_without_those_that_were_left_to_the_recipe(recipe: str) -> None:
    first = UnlearnConfig(model="m", forget="f.jsonl", output="run", recipe=recipe)
    first.validate()
    other = first.changed(epochs=3)
    other.validate()
    assert other == UnlearnConfig(model="m", forget="f.jsonl", output="run", recipe=recipe, epochs=3)
    assert other.is_given("epochs")
    assert not other.is_given("retain_weight")
    every = replace(first, epochs=3)  # gives them all
    every.validate()
    assert every == other


def test_parameters_of_a_loss_may_be_a_mapping() -> None:
    config = UnlearnConfig(**GIVEN, recipe="npo", loss_args={"beta": 0.2, "level": "sequence"})
    config.validate()
    assert config.loss_args == config.without_retain().loss_args == "beta=0.2,level=sequence"
    make_forget_loss("npo", config.loss_args)
    assert UnlearnConfig(**GIVEN, loss_args={}).loss_args == ""


def test_unknown_recipe_and_setting() -> None:
    with pytest.raises(ConfigError, match="--recipe best: unknown; known are default, npo, paper"):
        UnlearnConfig(recipe="best", **GIVEN)
    for recipe, now in (("steered", "default"), ("paper-code", "paper")):
        with pytest.raises(ConfigError, match=f"--recipe {recipe}: no recipe of this version: write --recipe {now}"):
            UnlearnConfig(recipe=recipe, **GIVEN)
    with pytest.raises(TypeError, match="colour"):
        UnlearnConfig(**GIVEN, colour="red")


def test_groups_hold_every_setting_once_and_come_back_from_a_file() -> None:
    names = [field.name for group in GROUPS.values() for field in fields(group)]
    assert sorted(names) == sorted(field.name for field in fields(UnlearnConfig))
    assert len(set(names)) == len(names)
    settings = asdict(UnlearnConfig(recipe="paper", **GIVEN))
    nested = by_group(settings)
    assert nested["loss"]["kl_weight"] == 0.5
    assert nested["optimisation"]["epochs"] == 20
    assert flat(nested) == flat(settings) == settings
    assert flat({"model": "m", "loss": {"kl_weight": 1.0}}) == {"model": "m", "kl_weight": 1.0}
    assert flat({"loss": "npo"}) == {"loss": "npo"}, "a setting may have the name of its group"
    with pytest.raises(ConfigError, match="kl_weight stands twice"):
        flat({"kl_weight": 1.0, "loss": {"kl_weight": 1.0}})


REFUSED: list[tuple[str, Any]] = [
    ("model", ""),
    ("output", ""),
    ("forget", None),
    ("instead", ""),
    ("epochs", 0),
    ("max_steps", 0),
    ("min_steps", -1),
    ("ema_steps", -1),
    ("learning_rate", 0.0),
    ("learning_rate", float("nan")),
    ("learning_rate", 1.0),
    ("warmup", 1.0),
    ("warmup", -0.1),
    ("max_grad_norm", -1.0),
    ("max_grad_norm", float("nan")),
    ("forget_weight", 0.0),
    ("retain_weight", -1.0),
    ("kl_weight", float("inf")),
    ("replay_weight", float("nan")),
    ("instead_weight", 0.0),
    ("instead_weight", 2.0),
    ("lora_rank", 0),
    ("lora_alpha", 0.0),
    ("lora_alpha", 1e300),
    ("lora_alpha", float("nan")),
    ("target_modules", " , "),
    ("tokens_per_step", 0),
    ("rows_per_step", 0),
    ("rows_per_step", 1),
    ("max_length", 1),
    ("eval_every", -1),
    ("patience", 0),
    ("target_auc", 1.5),
    ("target_auc", float("nan")),
    ("min_retain", -0.1),
    ("max_drift", 2.0),
    ("save_every", -1),
    ("seed", -1),
    ("seed", 2**32),
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_values_out_of_range_are_refused_by_their_flag(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-")) as error:
        UnlearnConfig(**{**GIVEN, name: value}).validate()
    assert "\n" not in str(error.value)


BENCHMARK = {"benchmark": "semeval", "data": "d", "forget": None, "retain": None}
CONTRADICTIONS: list[tuple[dict[str, Any], str]] = [
    ({"overwrite": True, "resume": True}, "--overwrite and --resume"),
    ({"from_manifest": "m.json", "resume": True}, "--from-manifest and --resume"),
    ({"shard_base": True, "load_in_4bit": True}, "--shard-base cannot share 4-bit weights"),
    ({"shard_base": True, "dry_run": True}, "leave --shard-base out"),
    ({"benchmark": "semeval"}, "--benchmark semeval needs --data"),
    ({"benchmark": "semeval", "data": "d"}, "leave --forget and --retain out"),
    ({"split": "train"}, "--split train: is for a --benchmark alone"),
    ({"context_tokens": 2048}, "--context-tokens 2048: must be below 2048, the longest row"),
    ({"context_tokens": 24, "max_length": 24}, "--context-tokens 24: must be below 24, the longest row"),
    ({"test": "t.jsonl", "retain_test": 0.2}, "--test and --retain-test 0.2: both say"),
    (BENCHMARK | {"test": "t.jsonl", "retain_test": 0.2}, "--test and --retain-test 0.2: both say"),
    ({"retain": None, "retain_weight": 3.0}, "--retain-weight 3.0: there is no --retain"),
    ({"retain": None, "recipe": "npo", "kl_weight": 3.0}, "--kl-weight 3.0: there is no --retain"),
    ({"eval_every": 5}, "--eval-every 5: it needs texts that the model has never seen"),
]


@pytest.mark.parametrize(("settings", "phrase"), CONTRADICTIONS)
def test_contradictions_are_refused(settings: dict[str, Any], phrase: str) -> None:
    with pytest.raises(ConfigError, match=phrase):
        UnlearnConfig(**{**GIVEN, **settings}).validate()


@pytest.mark.parametrize("schema", [*GROUPS.values(), EvaluateConfig, MergeConfig])
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


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("seed", True, "--seed True: must be a whole number"),
        ("epochs", "3", "--epochs '3': must be a whole number"),
        ("learning_rate", "much", "--learning-rate 'much': must be a number"),
        ("title", 3, "--title 3: must be text: put it in quotes"),
        ("overwrite", 1, "--overwrite 1: must be true or false"),
        ("dtype", "half", "--dtype 'half': must be one of auto, float32, bfloat16"),
        ("benchmark", 3, "--benchmark 3: must be one of semeval, lume, tofu, muse"),
    ],
)
def test_types_are_told_in_plain_words(name: str, value: object, rule: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(rule)}$"):
        UnlearnConfig(**{"model": "m", "forget": "f", "retain": "r", "output": "o", name: value}).validate()


@pytest.mark.parametrize("value", [["x"], {"a": 1}])
@pytest.mark.parametrize("name", sorted(field.name for field in fields(UnlearnConfig)))
def test_a_list_or_a_mapping_is_no_value_of_any_setting_but_loss_args(name: str, value: object) -> None:
    settings = {"model": "m", "forget": "f", "retain": "r", "output": "o", name: value}
    if (name, value) == ("loss_args", {"a": 1}):
        return
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} "):
        UnlearnConfig(**settings).validate()


@pytest.mark.parametrize(
    ("name", "args", "phrase"),
    [
        ("npo2", "", "--loss npo2: unknown; known are .*npo.*target_kl"),
        ("npo", "gamma=1", "--loss-args gamma: npo has no such parameter; it has beta, level"),
        ("idk", "beta=1", "--loss-args beta: idk has no such parameter; it has none"),
        ("npo", "beta=much", "--loss-args beta=much: must be a number"),
        ("npo", "beta=0", "--loss-args beta=0.0: must be finite and above 0"),
        ("npo", "level=word", "--loss-args level=word: must be one of token, sequence"),
        ("npo", "beta", "write each parameter once"),
        ("npo", "beta=1,beta=2", "write each parameter once"),
        ("rmu", "layer=-2", "--loss-args layer=-2"),
        ("rmu", "seed=-1", "--loss-args seed=-1: must lie between 0"),
        ("rmu", "seed=99999999999999999999999", "--loss-args seed=9+: must lie between 0"),
        ("wga", "beta=nan", "--loss-args beta=nan"),
    ],
)
def test_a_loss_that_cannot_be_made_is_named(name: str, args: str, phrase: str) -> None:
    with pytest.raises(ConfigError, match=phrase):
        make_forget_loss(name, args)


@pytest.mark.parametrize("name", FORGET_LOSSES)
def test_every_loss_says_what_it_is(name: str) -> None:
    loss = make_forget_loss(name)
    assert loss.name == name
    assert loss.formula
    assert loss.source
    assert type(loss).__doc__
    documented = set(re.findall(r"^ {8}(\w+): ", type(loss).__doc__ or "", re.MULTILINE))
    assert documented == {field.name for field in fields(FORGET_LOSSES[name])}


def test_parameters_of_a_loss_from_text_and_from_a_mapping() -> None:
    assert make_forget_loss("npo", " beta = 0.25 , level=sequence ") == make_forget_loss(
        "npo", {"beta": 0.25, "level": "sequence"}
    )
    assert make_forget_loss("rmu", "layer=3") == make_forget_loss("rmu", {"layer": 3})


def test_what_is_assigned_to_a_setting_counts_as_given() -> None:
    config = UnlearnConfig(model="m", output="o", forget="f", epochs=3)
    plain, other = copy(config), config.changed(seed=2)
    config.seed, config.learning_rate, config.epochs = 3, 1e-4, 5
    for settings in (config, config.without_retain().without_unseen(), config.changed(output="p")):
        assert (settings.seed, settings.learning_rate, settings.epochs) == (3, 1e-4, 5)
    for settings, seed in ((plain.without_unseen(), 0), (other.without_unseen(), 2)):
        assert (settings.seed, settings.learning_rate, settings.epochs) == (seed, None, 3)
    config.loss_args = {"nll_weight": 1}
    assert config.changed(seed=1).loss_args == config.loss_args == "nll_weight=1"
    with pytest.raises(ConfigError, match="sede: there is no such setting"):
        config.sede = 3
    with pytest.raises(ConfigError, match="recipe: its values stand already"):
        config.recipe = "npo"


def test_numbers_of_numpy_and_torch_are_settings_as_any_other() -> None:
    given = {"learning_rate": np.float64(1e-4), "seed": np.int64(3), "shard_base": np.bool_(False)}
    config = UnlearnConfig(**GIVEN, **given)
    config.epochs = torch.tensor(5)
    for settings in (config, config.changed(output="p")):
        settings.validate()
        found = [settings.learning_rate, settings.seed, settings.shard_base, settings.epochs]
        assert repr(found) == "[0.0001, 3, False, 5]"
    for schema in (EvaluateConfig, CalibrateConfig, ElicitConfig, MergeConfig):
        settings = schema(**{field.name: np.str_("a") for field in fields(schema) if field.default is MISSING})
        settings.dtype = np.str_("float32")
        assert type(settings.dtype) is str
    with pytest.raises(ConfigError, match="--seed array"):
        config.changed(seed=np.array([1, 2])).validate()


@pytest.mark.parametrize(("loss", "kept"), [({}, True), ({"loss": "npo"}, True), ({"loss": "simnpo"}, False)])
def test_a_repeated_run_with_another_loss_takes_none_of_its_parameters(
    loss: dict[str, str], kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = {"recipe": "paper", "loss": "npo", "loss_args": "beta=0.5,level=token", "learning_rate": 1e-4}
    monkeypatch.setattr("expunge.runs.settings.recorded_settings", lambda name, model: dict(made))
    found = recorded({"from_manifest": "run/manifest.json", **loss})
    assert found == made if kept else found == {key: value for key, value in made.items() if key != "loss_args"}
