"""The settings of an unlearning run, and the recipes over them."""

from dataclasses import dataclass, fields
from typing import Any, Literal

from expunge.config.checks import check_types
from expunge.config.criteria import Goal, read_goal
from expunge.errors import ConfigError

_PAPER: dict[str, Any] = {
    "epochs": 20,
    "learning_rate": 1e-4,
    "schedule": "constant",
    "warmup": 0.0,
    "forget_weight": 1.0,
    "kl_weight": 0.5,
    "anchor_weight": 0.0,
    "select_every": 0,
    "forget_span": "completion",
    "kl_span": "completion",
    "lora_rank": 5,
    "target_modules": "auto",
    "rows_per_step": 4,
    "max_grad_norm": 0.0,
    "dtype": "float32",
}
SETS = ("forget", "retain", "holdout", "instead")
"""Settings that name texts."""
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
    "steered": {
        "epochs": None,
        "schedule": "constant",
        "warmup": 0.02,
        "retain_weight": 2.0,
        "kl_weight": 2.0,
        "anchor_weight": 3.0,
        "lora_rank": 32,
        "select_every": None,
    },
    "paper": _PAPER,
    "paper-code": {
        **_PAPER,
        "kl_direction": "target-token",
        "mix": "random",
        "join": "separate",
        "end_of_text": "no",
    },
}
"""Named presets: what differs from the defaults of `UnlearnConfig` (which are the recipe `default`).

`steered` follows unseen texts to their depth and holds anchors (docs/stopping.md). `paper` is arXiv 2503.13690 as it
describes itself, with the exact KL; `paper-code` is its published code: the target-token "KL", prompt and completion
tokenized apart without an end-of-text token, batches mixed at random.
"""


@dataclass
class UnlearnConfig:
    """Everything that an unlearning run depends on.

    Attributes:
        model: Folder or Hub name of the model; a PEFT adapter folder is folded into its base first.
        forget: File or `datasets` name with the texts to forget.
        retain: File or `datasets` name with the texts to keep.
        output: Run directory to write.
        holdout: Texts like the forget set that the model has never seen; half of them say when to stop and how strong
            the adapter should be, none is ever trained on. A benchmark brings its own.
        instead: File or `datasets` name with what the model should say instead: prompts as those of the forget set, and
            other completions, which are trained on. Without it nothing says what comes in place of what is forgotten.
        benchmark: Read `forget`, `retain` and the membership documents from the folder `data`: `semeval`.
        data: The benchmark's folder.
        split: The benchmark's split.
        columns: Which column is what, as `prompt=...,completion=...[,id=...,task=...]`, in all files of texts.
        recipe: Preset over this schema: `default`, `steered`, `paper` or `paper-code`. On the command line, where none
            is named, `steered` with enough unseen texts (`holdout` or a benchmark's) and `default` without.
        epochs: Passes over the forget set. None: 24, or what makes 500 steps if a run ends by itself and that is more.
        max_steps: Stop after so many optimizer steps, whatever `epochs` says.
        learning_rate: Peak learning rate of Adam; by default 1.5e-3, and 0.384 / hidden size above a width of 256.
        schedule: `cosine` or `linear` to zero over the run, or `constant`; a run that follows unseen texts halves
            it where its looks get no better.
        warmup: Share of the steps over which the learning rate rises from zero.
        max_grad_norm: Clip the adapter's gradient to this norm; 0 leaves it alone.
        beta: Inverse temperature of NPO.
        level: Unit of NPO: `token` or `sequence`.
        forget_weight: Weight of NPO.
        rest_weight: Weight of the KL of all other tokens in place of a forgotten one, with their shares among
            themselves; it is what keeps the model from babbling there. 0 leaves them free.
        retain_weight: Weight of the retain NLL.
        kl_weight: Weight of the retain KL.
        kl_direction: `reverse` is KL(policy || reference), `forward` KL(reference || policy), `target-token` what the
            paper's code computes in its place.
        forget_span: NPO on the `completion` tokens or on `all` tokens of a forget text.
        kl_span: KL on the `completion` tokens or on `all` tokens of a retain text.
        anchor_weight: Weight of the KL on anchors, texts that the untouched model writes itself; they hold what it says
            of texts that it never saw. 0 uses none.
        anchors_per_forget: Anchor tokens (rows under `rows_per_step`) per forget token in a step.
        instead_weight: Weight of the NLL on the completions of `instead`.
        select_every: Optimizer steps between looks at the selection texts; a quarter of an epoch when None. 0 never
            looks: the run goes through all epochs and keeps the strength that it ends with.
        target: Membership AUC to come to, `auc=0.5` or a retrained model's.
        floor: Least share of the retain texts to keep, in probability and in what is still said, as `retain=0.98`.
        ceiling: Largest relative change of the unseen texts' loss, as `drift=0.05`.
        lora_rank: Rank of the adapter.
        lora_alpha: Adapter scale times rank; by default the rank.
        target_modules: `all-linear`, `auto` (query and value projections, as PEFT knows the architecture), or names
            of modules separated by commas.
        tokens_per_step: Tokens of forget and retain texts together in one optimizer step.
        rows_per_step: Rows instead of tokens in one optimizer step (overrides `tokens_per_step`).
        mix: `fixed`: every step holds forget and retain texts in the same proportion; `random`: both shuffled
            together, a side that is missing from a step counts 0.
        retain_per_forget: Retain tokens (rows under `rows_per_step`) per forget token in a step; by default that of
            the two sets.
        max_length: Longest text in tokens; longer ones lose the head of their prompt.
        truncate_completions: Cut a completion that does not fit by itself (otherwise an error).
        join: What stands between prompt and completion: `auto` (measured on the model), `none`, `space`, `newline`,
            `separate` (nothing, and the two sides tokenized apart), `chat` (the tokenizer's chat template).
        end_of_text: End completions with the end-of-text token: `auto` (measured on the model), `yes`, `no`.
        dtype: `auto` (bfloat16 autocast where the device is fast at it, else float32), `float32`, `bfloat16`.
        device: `auto`, `cpu`, `cuda`, `cuda:1` ...
        gradient_checkpointing: Recompute activations in the backward pass: less memory, about a third more time.
        load_in_4bit: Keep the base weights in 4 bits (CUDA, `expunge[4bit]`).
        shard_base: Let each process of the run hold its part of the base's layers alone: less memory, more traffic.
        seed: Seed of the adapter's initialisation and of the order of the data.
        save_every: Optimizer steps between checkpoints; 0 writes none.
        report_to: Trackers (`tensorboard`, `wandb`), separated by commas.
        trust_remote_code: Run code that comes with the model.
        overwrite: Replace an earlier run in `output`.
        resume: Go on from the last checkpoint in `output`.
        from_manifest: Repeat the run of this manifest.json: its settings stand where no flag does, and model, data and
            settings must be those that it names (paths may have moved).
        dry_run: Time a few steps, say what the run would take, and write nothing.
    """

    model: str
    forget: str | None = None
    retain: str | None = None
    output: str = ""
    holdout: str | None = None
    instead: str | None = None
    benchmark: Literal["semeval"] | None = None
    data: str | None = None
    split: str = "train"
    columns: str | None = None
    recipe: str = "default"

    epochs: int | None = 14
    max_steps: int | None = None
    learning_rate: float | None = None
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.05
    max_grad_norm: float = 1.0

    beta: float = 0.5
    level: Literal["token", "sequence"] = "token"
    forget_weight: float = 1.0
    rest_weight: float = 0.0
    retain_weight: float = 1.0
    kl_weight: float = 1.5
    kl_direction: Literal["reverse", "forward", "target-token"] = "reverse"
    forget_span: Literal["completion", "all"] = "all"
    kl_span: Literal["completion", "all"] = "all"
    anchor_weight: float = 0.0
    anchors_per_forget: float = 1.0
    instead_weight: float = 1.0

    select_every: int | None = 0
    target: str = "auc=0.5"
    floor: str = "retain=0.98"
    ceiling: str = "drift=0.05"

    lora_rank: int = 16
    lora_alpha: float | None = None
    target_modules: str = "all-linear"

    tokens_per_step: int = 1024
    rows_per_step: int | None = None
    mix: Literal["fixed", "random"] = "fixed"
    retain_per_forget: float | None = None
    max_length: int = 2048
    truncate_completions: bool = False
    join: Literal["auto", "none", "space", "newline", "chat", "separate"] = "auto"
    end_of_text: Literal["auto", "yes", "no"] = "auto"

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    gradient_checkpointing: bool = False
    load_in_4bit: bool = False
    shard_base: bool = False
    seed: int = 0
    save_every: int = 100
    report_to: str | None = None
    trust_remote_code: bool = False
    overwrite: bool = False
    resume: bool = False
    from_manifest: str | None = None
    dry_run: bool = False

    @classmethod
    def from_recipe(cls, recipe: str = "default", **settings: Any) -> "UnlearnConfig":
        """The recipe's values, with `settings` over them.

        Raises:
            ConfigError: Unknown recipe or setting.
        """
        if recipe not in RECIPES:
            raise ConfigError(f"--recipe {recipe}: unknown; known are {', '.join(RECIPES)}")
        unknown = sorted(set(settings) - {f.name for f in fields(cls)})
        if unknown:
            raise ConfigError(f"unknown setting {', '.join(unknown)}; see `expunge unlearn --help` for those there are")
        return cls(**{"recipe": recipe, **RECIPES[recipe], **settings})

    @property
    def uses_kl_states(self) -> bool:
        """Whether the full-vocabulary KL, and with it the reference's hidden states, is needed."""
        return self.kl_weight > 0 and self.kl_direction != "target-token"

    def validate(self) -> None:
        """Check every range and every pair of settings that must agree; nothing is loaded.

        Raises:
            ConfigError: The first setting that cannot be used, named by its flag.
        """
        check_types(self)
        checks = [
            (bool(self.model), "--model is missing: give a folder or a Hub name"),
            (bool(self.output), "--output is missing: give the run directory to write"),
            (self.recipe in RECIPES, f"--recipe {self.recipe}: unknown; known are {', '.join(RECIPES)}"),
            (self.epochs is None or self.epochs >= 1, f"--epochs {self.epochs}: must be at least 1"),
            (self.max_steps is None or self.max_steps >= 1, f"--max-steps {self.max_steps}: must be at least 1"),
            (self.learning_rate is None or 0 < self.learning_rate < 1,
             f"--learning-rate {self.learning_rate}: must lie between 0 and 1"),
            (0 <= self.warmup < 1, f"--warmup {self.warmup}: is a share of the steps, at least 0 and below 1"),
            (0 <= self.max_grad_norm < float("inf"), f"--max-grad-norm {self.max_grad_norm}: must be 0 or more"),
            (0 < self.beta <= 100, f"--beta {self.beta}: must lie above 0 and not above 100"),
            (0 < self.forget_weight < float("inf"), f"--forget-weight {self.forget_weight}: must be above 0"),
            (0 <= self.rest_weight < float("inf"), f"--rest-weight {self.rest_weight}: must be finite, 0 or more"),
            (0 <= self.retain_weight < float("inf"), f"--retain-weight {self.retain_weight}: must be 0 or more"),
            (0 <= self.kl_weight < float("inf"), f"--kl-weight {self.kl_weight}: must be finite, 0 or more"),
            (0 <= self.anchor_weight < float("inf"),
             f"--anchor-weight {self.anchor_weight}: must be finite, 0 or more"),
            (0 < self.anchors_per_forget < float("inf"),
             f"--anchors-per-forget {self.anchors_per_forget}: must be finite and above 0"),
            (self.anchor_weight == 0 or self.mix == "fixed" or self.rows_per_step is None,
             "--mix random has no place for anchors: --anchor-weight 0"),
            (0 < self.instead_weight < float("inf"),
             f"--instead-weight {self.instead_weight}: must be finite and above 0"),
            (self.instead != "", "--instead is empty: give a file, or leave it out"),
            (bool(self.instead) or self.instead_weight == UnlearnConfig.instead_weight,
             f"--instead-weight {self.instead_weight}: there is no --instead that it could weigh"),
            (not self.instead or self.mix == "fixed", "--mix random has no place for --instead"),
            (self.select_every is None or self.select_every >= 0,
             f"--select-every {self.select_every}: must be 0 or more"),
            (self.select_every == 0 or bool(self.holdout) or self.benchmark is not None,
             f"--holdout is missing: recipe {self.recipe} follows texts like those to forget that the model has "
             "never seen; without them take --recipe default"),
            (1 <= self.lora_rank <= 4096, f"--lora-rank {self.lora_rank}: must lie between 1 and 4096"),
            (self.lora_alpha is None or 0 < self.lora_alpha < float("inf"),
             f"--lora-alpha {self.lora_alpha}: must be finite and above 0"),
            (bool(self.target_modules.strip(" ,")), "--target-modules is empty: give all-linear, auto or module names"),
            (self.tokens_per_step >= 1, f"--tokens-per-step {self.tokens_per_step}: must be at least 1"),
            (self.rows_per_step is None or self.rows_per_step >= 1,
             f"--rows-per-step {self.rows_per_step}: must be at least 1"),
            (self.mix == "random" or self.rows_per_step is None or self.rows_per_step >= 2,
             "--rows-per-step 1 cannot hold a forget and a retain row: use 2 or more, or --mix random"),
            (self.mix == "fixed" or self.rows_per_step is not None, "--mix random needs --rows-per-step"),
            (self.retain_per_forget is None or 0 < self.retain_per_forget < float("inf"),
             f"--retain-per-forget {self.retain_per_forget}: must be finite and above 0"),
            (self.max_length >= 2, f"--max-length {self.max_length}: must be at least 2"),
            (self.save_every >= 0, f"--save-every {self.save_every}: must be 0 or more"),
            (0 <= self.seed < 2**32, f"--seed {self.seed}: must lie between 0 and 2^32 - 1"),
            (not (self.overwrite and self.resume), "--overwrite and --resume contradict each other: choose one"),
            (not (self.from_manifest and self.resume), "--from-manifest and --resume contradict each other: take one"),
            (not (self.dry_run and self.resume), "--dry-run and --resume contradict each other: choose one"),
            (not (self.shard_base and self.load_in_4bit), "--shard-base cannot share 4-bit weights: leave one out"),
            (not (self.shard_base and self.dry_run), "--dry-run looks at one process alone: leave --shard-base out"),
            (self.benchmark is None or bool(self.data), f"--benchmark {self.benchmark} needs --data, its folder"),
            (self.benchmark is None or not (self.forget or self.retain),
             f"--benchmark {self.benchmark} brings its own files: leave --forget and --retain out"),
            (self.benchmark is not None or bool(self.forget), "--forget is missing: give the file of texts to forget"),
            (self.benchmark is not None or bool(self.retain) or not self.needs_retain,
             f"--retain is missing: recipe {self.recipe} keeps the model in place with texts to keep "
             f"(retain_weight {self.retain_weight:g}, kl_weight {self.kl_weight:g})"),
        ]  # fmt: skip
        for holds, message in checks:
            if not holds:
                raise ConfigError(message)
        _ = self.goal

    @property
    def goal(self) -> Goal:
        """What selection is to reach.

        Raises:
            ConfigError: `target`, `floor` or `ceiling` cannot be read.
        """
        return read_goal(self.target, self.floor, self.ceiling)

    @property
    def needs_retain(self) -> bool:
        """Whether a retain term has any weight."""
        return self.retain_weight > 0 or self.kl_weight > 0
