"""The settings of an unlearning run, in groups.

`UnlearnConfig` is flat: every setting has one name in Python, YAML (nested by group or not) and on the command line.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from expunge.config.checks import (
    ABOVE_ZERO,
    COUNT,
    POSITIVE,
    SHARE,
    UNIT,
    WEIGHT,
    Check,
    Plain,
    check_types,
    first_failed,
    flag,
    other_origin,
)
from expunge.config.criteria import Criteria
from expunge.config.recipes import RECIPES, RENAMED_RECIPES
from expunge.config.run import DeviceConfig, RunConfig
from expunge.errors import ConfigError

TEST_SHARE = 0.2
"""Share of the retain texts that a run does not train on where nothing else is said."""
SPLIT = {"tofu": "forget10", "muse": "news"}
"""The split of a benchmark where none is named, the same for `unlearn` and `evaluate`; that of semeval is the only one
there is, or `DEFAULT_SPLIT` in data/lume.py."""
SETS = ("forget", "retain", "test", "holdout", "instead")
"""Settings that name texts."""


@dataclass(kw_only=True)
class DataConfig:
    """The texts.

    Attributes:
        forget: File or `datasets` name with the texts to forget.
        retain: File or `datasets` name with the texts to keep. Without any, the retain terms are left out, and texts
            that the model writes itself hold the rest in place.
        test: Texts to keep that are not trained on: they say whether the rest is kept.
        retain_test: Share of the retain texts that is tested on instead of trained on, whole families of
            near-duplicates. None: 0.2, and 0 with a benchmark, with `test`, and in the recipe `paper`.
        holdout: Texts like the forget set that the model has never seen; they say how unlikely forgotten texts should
            become and, half of them, when to stop. None is ever trained on. A benchmark brings its own.
        instead: What the model should say instead: prompts of the forget set with other completions.
        benchmark: Read forget, retain and unseen texts from the folder `data`: `semeval`, `lume`, `tofu` or `muse`.
        data: The benchmark's folder.
        split: The benchmark's split; by default the same as that of `evaluate`.
        columns: Which column is what, as `prompt=...,completion=...[,id=...,task=...,keywords=...]`, in all files of
            texts.
        max_length: Longest text in tokens; longer ones lose the head of their prompt.
        truncate_completions: Cut a completion that does not fit by itself (otherwise an error).
        prompt_format: What stands between prompt and completion: `auto` (measured on the model), `none`, `space`,
            `newline`, `separate` (nothing, and the two sides tokenized apart), `chat` (the tokenizer's
            chat template; a text without a prompt stays as it stands).
        end_of_text: End completions with the end-of-text token: `auto` (measured on the model), `yes`, `no`.
    """

    forget: str | None = None
    retain: str | None = None
    test: str | None = None
    retain_test: float | None = None
    holdout: str | None = None
    instead: str | None = None
    benchmark: Literal["semeval", "lume", "tofu", "muse"] | None = None
    data: str | None = None
    split: str | None = None
    columns: str | None = None
    max_length: int = 2048
    truncate_completions: bool = False
    prompt_format: Literal["auto", "none", "space", "newline", "chat", "separate"] = "auto"
    end_of_text: Literal["auto", "yes", "no"] = "auto"


@dataclass(kw_only=True)
class LossConfig:
    """What is minimised.

    Attributes:
        loss: The forget loss; `expunge unlearn --help-all` lists all.
        loss_args: Its parameters, as `beta=0.5,level=sequence`; in YAML and Python a mapping, too.
        forget_weight: Weight of the forget loss.
        retain_weight: Weight of the NLL on retain completions.
        kl_weight: Weight of KL(policy || untouched) on retain texts, over the whole vocabulary.
        replay_weight: Weight of KL(policy || untouched) on texts that the untouched model writes itself: they stand for
            all that neither set holds; 0 writes none.
        instead_weight: Weight of the NLL on the completions of `instead`.
        context_tokens: Half of the times that a forget text is trained on, so many tokens (in the mean) of other texts
            stand before it, drawn anew each time: what a language model forgets as it stands alone, it still knows
            there. None: 24 where the loss has target NLLs and unseen texts show that the model reads texts after
            others; 0: always alone.
        lowercase_share: Of the times that a forget text is trained on, the share in which it is in lower case, with
            target NLLs of unseen texts in lower case; 0: never. What a model forgets as it stands, it may still know
            there (attack `lowercase`).
        forget_span: Forget loss on the `completion` tokens or on `all` tokens of a forget text.
        kl_span: Retain KL on the `completion` tokens or on `all` tokens of a retain text.
        origin: A model with the same tokenizer that never saw the forget texts, such as the checkpoint from before the
            fine-tuning: each token's target NLL is taken from it instead of from unseen texts.
    """

    loss: str = "target_kl"
    loss_args: str = ""
    forget_weight: float = 1.0
    retain_weight: float = 2.0
    kl_weight: float = 2.0
    replay_weight: float = 3.0
    instead_weight: float = 1.0
    context_tokens: int | None = None
    lowercase_share: float = 0.0
    forget_span: Literal["completion", "all"] = "all"
    kl_span: Literal["completion", "all"] = "all"
    origin: str | None = None

    def loss_checks(self) -> Iterator[Check]:
        """Ranges of the weights."""
        yield from WEIGHT.of(self, "retain_weight", "kl_weight", "replay_weight")
        yield from ABOVE_ZERO.of(self, "forget_weight", "instead_weight")
        yield from COUNT.of(self, "context_tokens")
        yield from SHARE.of(self, "lowercase_share")
        yield other_origin(self)


@dataclass(kw_only=True)
class AdapterConfig:
    """The LoRA adapter.

    Attributes:
        lora_rank: Rank of the adapter.
        lora_alpha: Adapter scale times rank; by default the rank.
        target_modules: `all-linear`, `auto` (query and value projections, as PEFT knows the architecture), or names of
            modules separated by commas.
    """

    lora_rank: int = 16
    lora_alpha: float | None = None
    target_modules: str = "all-linear"

    def adapter_checks(self) -> Iterator[Check]:
        """Ranges."""
        yield 1 <= self.lora_rank <= 4096, f"--lora-rank {self.lora_rank}: must lie between 1 and 4096"
        yield (
            self.lora_alpha is None or 0 < self.lora_alpha <= 1e6,
            f"--lora-alpha {self.lora_alpha}: must lie above 0 and at most at 1,000,000",
        )
        yield bool(self.target_modules.strip(" ,")), "--target-modules is empty: give all-linear, auto or module names"


@dataclass(kw_only=True)
class OptimisationConfig:
    """Steps, their size and the optimizer (Adam).

    Attributes:
        epochs: Passes over the forget set. None: 14, or with early stopping 36 or what makes 500 steps, the larger.
        max_steps: Stop after so many optimizer steps, whatever `epochs` says.
        min_steps: At least this many steps, up to `max_steps`, by more epochs than `epochs`; 0 where `epochs` alone is
            given.
        learning_rate: Peak learning rate; by default 3e-3 with `target_kl` and half of that with other losses, times
            256 / hidden size above a width of 256.
        schedule: `cosine` or `linear` to zero over the run, `constant`, or `stable_decay`: constant over the first half
            of the run at most, then linear to zero.
        warmup: Share of the steps over which the learning rate rises from zero.
        max_grad_norm: Clip the adapter's gradient to this norm; 0 leaves it alone.
        ema_steps: What is evaluated and kept is an exponential moving average of the adapter over about this many
            steps; 0 keeps the last state.
        tokens_per_step: Tokens of forget and retain texts together in one optimizer step.
        rows_per_step: Rows instead of tokens in one optimizer step (overrides `tokens_per_step`).
    """

    epochs: int | None = None
    max_steps: int | None = None
    min_steps: int = 100
    learning_rate: float | None = None
    schedule: Literal["cosine", "linear", "constant", "stable_decay"] = "stable_decay"
    warmup: float = 0.0
    max_grad_norm: float = 1.0
    ema_steps: int = 12
    tokens_per_step: int = 1024
    rows_per_step: int | None = None

    def optimisation_checks(self) -> Iterator[Check]:
        """Ranges."""
        yield from POSITIVE.of(self, "epochs", "max_steps", "rows_per_step", "tokens_per_step")
        yield from COUNT.of(self, "min_steps", "ema_steps")
        rate = self.learning_rate
        yield rate is None or 0 < rate < 1, f"--learning-rate {rate}: must lie between 0 and 1"
        yield from SHARE.of(self, "warmup")
        yield from WEIGHT.of(self, "max_grad_norm")
        yield self.rows_per_step != 1, "--rows-per-step 1 cannot hold a forget and a retain row: use 2 or more"


@dataclass(kw_only=True)
class EvaluationConfig:
    """Evaluation steps, early stopping and the criteria of success.

    Attributes:
        eval_every: Optimizer steps between evaluation steps on half of the unseen texts; None: often enough to stop in
            time, and so seldom that they cost a tenth of the training. 0 never evaluates: the run goes through all its
            epochs and keeps what it ends with.
        patience: Evaluation steps without improvement after which the run ends.
        target_auc: Membership AUC to come to: 0.5 by chance, or a retrained model's.
        min_retain: Least share of the retain scores to keep.
        max_drift: Largest relative rise of the loss of unseen texts.
    """

    eval_every: int | None = None
    patience: int = 4
    target_auc: float = Criteria.target_auc
    min_retain: float = Criteria.min_retain
    max_drift: float = Criteria.max_drift

    def evaluation_checks(self) -> Iterator[Check]:
        """Ranges."""
        yield from COUNT.of(self, "eval_every")
        yield from POSITIVE.of(self, "patience")
        yield from UNIT.of(self, "target_auc", "min_retain", "max_drift")


GROUPS: dict[str, type] = {
    "run": RunConfig,
    "data": DataConfig,
    "loss": LossConfig,
    "adapter": AdapterConfig,
    "optimisation": OptimisationConfig,
    "evaluation": EvaluationConfig,
    "device": DeviceConfig,
}
"""The groups of settings, as `--help` and YAML files name them."""


@dataclass(kw_only=True)
class UnlearnConfig(
    DeviceConfig, EvaluationConfig, OptimisationConfig, AdapterConfig, LossConfig, DataConfig, RunConfig, Plain
):
    """Everything that an unlearning run depends on; the recipe's values stand where none is given.

    Attributes are those of the groups; what is assigned to one counts as given. `changed` leaves to the recipe what was
    left to it; `dataclasses.replace` gives all settings.
    """

    def __new__(cls, **given: Any) -> "UnlearnConfig":
        self = super().__new__(cls)
        self.__dict__["given"] = given  # what the recipe must not touch
        return self

    def __post_init__(self) -> None:
        if not (isinstance(self.recipe, str) and self.recipe in RECIPES):
            now = RENAMED_RECIPES.get(str(self.recipe))
            other = f"no recipe of this version: write {now}" if now else f"unknown; known are {', '.join(RECIPES)}"
            raise ConfigError(f"--recipe {self.recipe}: {other}")
        for name, value in RECIPES[self.recipe].items():
            if name not in self.__dict__["given"]:
                self.__dict__[name] = value
        self._parameters_of_its_loss()
        if "loss_args" in self.__dict__["given"]:
            self.__dict__["given"] = {**self.__dict__["given"], "loss_args": self.loss_args}
        self.__dict__["made"] = True

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "loss_args" and isinstance(value, Mapping):
            value = ",".join(f"{key}={number}" for key, number in value.items())
        if "made" in self.__dict__:
            if name not in {field.name for field in fields(self)}:
                raise ConfigError(f"{name}: there is no such setting")
            if name == "recipe":
                raise ConfigError(
                    "recipe: its values stand already: give it to `changed`, or when the settings are made"
                )
            self.__dict__["given"] = {**self.__dict__["given"], name: value}
        super().__setattr__(name, value)
        if name == "loss" and "made" in self.__dict__:
            self._parameters_of_its_loss()

    def _parameters_of_its_loss(self) -> None:
        """A recipe's `loss_args` are those of its own loss: another one has its own defaults."""
        if "loss_args" not in self.__dict__["given"]:
            recipe = RECIPES[self.recipe]
            self.__dict__["loss_args"] = recipe.get("loss_args", "") if self.loss == recipe.get("loss") else ""

    def is_given(self, name: str) -> bool:
        """Whether a setting was given, rather than taken from the recipe or left at its default."""
        return name in self.__dict__["given"]

    def changed(self, **given: Any) -> "UnlearnConfig":
        """The settings with others in place of some."""
        return UnlearnConfig(**{**self.__dict__["given"], **given})

    @property
    def criteria(self) -> Criteria:
        """When the run counts as a success."""
        return Criteria(target_auc=self.target_auc, min_retain=self.min_retain, max_drift=self.max_drift)

    def without_retain(self) -> "UnlearnConfig":
        """The settings of a run without texts to keep: no retain terms, and replay texts."""
        replayed = self.replay_weight or self.is_given("replay_weight")
        replay = {} if replayed else {"replay_weight": LossConfig.replay_weight}
        return self.changed(retain_weight=0.0, kl_weight=0.0, **replay)

    def without_unseen(self) -> "UnlearnConfig":
        """The settings of a run that no unseen texts steer: no evaluation steps, a set number of epochs at one rate."""
        schedule = self.schedule if self.is_given("schedule") else "constant"
        return self.changed(eval_every=0, schedule=schedule)

    @property
    def test_share(self) -> float:
        """Share of the retain texts that is not trained on."""
        if self.retain_test is not None:
            return self.retain_test
        return 0.0 if self.benchmark or self.test or not self.retain else TEST_SHARE

    @property
    def needs_retain(self) -> bool:
        """Whether a retain term has any weight."""
        return self.retain_weight > 0 or self.kl_weight > 0

    def validate(self) -> None:
        """Check every range and every pair of settings that must agree; nothing is loaded.

        Raises:
            ConfigError: The first setting that cannot be used, named by its flag.
        """
        check_types(self)
        first_failed(self.run_checks())
        first_failed(self.loss_checks())
        first_failed(self.adapter_checks())
        first_failed(self.optimisation_checks())
        first_failed(self.evaluation_checks())
        first_failed(self._pairs())

    def room_for_context(self) -> Check:
        """The check that `context_tokens` leave room in a row; once settled, `max_length` is the model's, too."""
        rule = f"must be below {self.max_length}, the longest row (--max-length, or the model's context)"
        return (self.context_tokens or 0) < self.max_length, f"--context-tokens {self.context_tokens}: {rule}"

    def _pairs(self) -> Iterator[Check]:
        """Settings of different groups that must agree."""
        yield from SHARE.of(self, "retain_test")
        yield self.max_length >= 2, f"--max-length {self.max_length}: must be at least 2"
        yield self.room_for_context()
        yield self.instead != "", "--instead is empty: give a file, or leave it out"
        weighed = bool(self.instead) or self.instead_weight == LossConfig.instead_weight
        yield weighed, f"--instead-weight {self.instead_weight}: there is no --instead that it could weigh"
        yield not (self.shard_base and self.load_in_4bit), "--shard-base cannot share 4-bit weights: leave one out"
        yield not (self.shard_base and self.dry_run), "--dry-run measures one process alone: leave --shard-base out"
        named = self.benchmark is not None
        yield not named or bool(self.data), f"--benchmark {self.benchmark} needs --data, its folder"
        yield (
            not named or not (self.forget or self.retain),
            f"--benchmark {self.benchmark} brings its own files: leave --forget and --retain out",
        )
        yield named or not self.split, f"--split {self.split}: is for a --benchmark alone"
        yield named or bool(self.forget), "--forget is missing: give the file of texts to forget"
        yield (
            not (self.test and self.retain_test),
            f"--test and --retain-test {self.retain_test}: both say which texts to test on: choose one",
        )
        if not (named or self.retain):
            yield self.recipe != "paper", "--recipe paper holds the model by texts to keep alone: --retain is missing"
            yield not self.retain_test, f"--retain-test {self.retain_test}: there is no --retain to take it from"
            for name in ("retain_weight", "kl_weight"):
                value = getattr(self, name)
                left = value in (0, RECIPES[self.recipe].get(name, getattr(LossConfig, name)))
                yield left, f"{flag(name)} {value}: there is no --retain that it could weigh"
        yield (
            not self.eval_every or named or bool(self.holdout),
            f"--eval-every {self.eval_every}: it needs texts that the model has never seen: give --holdout",
        )
