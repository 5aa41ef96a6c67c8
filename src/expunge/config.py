"""The one schema for Python arguments, YAML keys and command-line flags, and the recipes over it."""

from dataclasses import dataclass, fields
from typing import Any, Literal, get_args, get_origin, get_type_hints

from expunge.errors import ConfigError

_PAPER: dict[str, Any] = {
    "epochs": 20,
    "learning_rate": 1e-4,
    "schedule": "constant",
    "warmup": 0.0,
    "kl_weight": 0.5,
    "forget_span": "completion",
    "kl_span": "completion",
    "lora_rank": 5,
    "target_modules": "auto",
    "rows_per_step": 4,
    "max_grad_norm": 0.0,
    "dtype": "float32",
}
RECIPES: dict[str, dict[str, Any]] = {
    "default": {},
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

`paper` is arXiv 2503.13690 as it describes itself, with the exact KL; `paper-code` is its published code: the
target-token "KL", prompt and completion tokenized apart without an end-of-text token, batches mixed at random.
"""

ATTACKS = ("loss", "zlib", "lowercase", "min_k", "min_k_plus_plus", "reference", "gradient_norm")
"""Membership attacks that `--attacks` may name."""


@dataclass
class UnlearnConfig:
    """Everything that an unlearning run depends on.

    Attributes:
        model: Folder or Hub name of the model; a PEFT adapter folder is folded into its base first.
        forget: File or `datasets` name with the texts to forget.
        retain: File or `datasets` name with the texts to keep.
        output: Run directory to write.
        holdout: Texts like the forget set that the model has never seen (measured at the end, never trained on).
        benchmark: Read `forget`, `retain` and the membership documents from the folder `data`: `semeval`.
        data: The benchmark's folder.
        split: The benchmark's split.
        columns: Which column is what, as `prompt=...,completion=...[,id=...,task=...]`.
        recipe: Preset over this schema: `default`, `paper` or `paper-code`.
        epochs: Passes over the forget set.
        max_steps: Stop after so many optimizer steps, whatever `epochs` says.
        learning_rate: Peak learning rate of Adam; by default 1.5e-3, and 0.384 / hidden size above a width of 256.
        schedule: `cosine` or `linear` to zero over the run, or `constant`.
        warmup: Share of the steps over which the learning rate rises from zero.
        max_grad_norm: Clip the adapter's gradient to this norm; 0 leaves it alone.
        beta: Inverse temperature of NPO.
        level: Unit of NPO: `token` or `sequence`.
        forget_weight: Weight of NPO.
        retain_weight: Weight of the retain NLL.
        kl_weight: Weight of the retain KL.
        kl_direction: `reverse` is KL(policy || reference), `forward` KL(reference || policy), `target-token` what the
            paper's code computes in its place.
        forget_span: NPO on the `completion` tokens or on `all` tokens of a forget text.
        kl_span: KL on the `completion` tokens or on `all` tokens of a retain text.
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
    benchmark: Literal["semeval"] | None = None
    data: str | None = None
    split: str = "train"
    columns: str | None = None
    recipe: str = "default"

    epochs: int = 14
    max_steps: int | None = None
    learning_rate: float | None = None
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    warmup: float = 0.05
    max_grad_norm: float = 1.0

    beta: float = 0.5
    level: Literal["token", "sequence"] = "token"
    forget_weight: float = 1.0
    retain_weight: float = 1.0
    kl_weight: float = 1.5
    kl_direction: Literal["reverse", "forward", "target-token"] = "reverse"
    forget_span: Literal["completion", "all"] = "all"
    kl_span: Literal["completion", "all"] = "all"

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
        _check_types(self)
        checks = [
            (bool(self.model), "--model is missing: give a folder or a Hub name"),
            (bool(self.output), "--output is missing: give the run directory to write"),
            (self.recipe in RECIPES, f"--recipe {self.recipe}: unknown; known are {', '.join(RECIPES)}"),
            (self.epochs >= 1, f"--epochs {self.epochs}: must be at least 1"),
            (self.max_steps is None or self.max_steps >= 1, f"--max-steps {self.max_steps}: must be at least 1"),
            (self.learning_rate is None or 0 < self.learning_rate < 1,
             f"--learning-rate {self.learning_rate}: must lie between 0 and 1"),
            (0 <= self.warmup < 1, f"--warmup {self.warmup}: is a share of the steps, at least 0 and below 1"),
            (0 <= self.max_grad_norm < float("inf"), f"--max-grad-norm {self.max_grad_norm}: must be 0 or more"),
            (0 < self.beta <= 100, f"--beta {self.beta}: must lie above 0 and not above 100"),
            (0 < self.forget_weight < float("inf"), f"--forget-weight {self.forget_weight}: must be above 0"),
            (0 <= self.retain_weight < float("inf"), f"--retain-weight {self.retain_weight}: must be 0 or more"),
            (0 <= self.kl_weight < float("inf"), f"--kl-weight {self.kl_weight}: must be finite, 0 or more"),
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

    @property
    def needs_retain(self) -> bool:
        """Whether a retain term has any weight."""
        return self.retain_weight > 0 or self.kl_weight > 0


@dataclass
class EvaluateConfig:
    """What an evaluation depends on.

    Attributes:
        model: Folder or Hub name of the model.
        data: The benchmark's folder.
        output: Results file to write; the values of every row go to a .parquet file beside it.
        adapter: Run directory or adapter folder to put on the model.
        benchmark: `semeval`, `lume`, `tofu`, `muse`, or `custom` (your own files).
        split: The benchmark's split: semeval `validation` (default) or `train`; tofu `forget01`, `forget05` or
            `forget10` (default); muse `news` (default) or `books`. A plain folder of lume or semeval has none.
        forget: Custom: file or `datasets` name with the texts that must be forgotten.
        retain: Custom: texts that must be kept.
        holdout: Custom: texts like the forget set that the model has never seen; membership is measured against them.
        columns: Custom: which column is what, as `prompt=...,completion=...[,id=...,task=...]`.
        reference: A model that never saw the forget set: every metric is shown for it too.
        attacks: Membership attacks, separated by commas: `loss`, `zlib`, `lowercase`, `min_k`, `min_k_plus_plus`,
            `reference` (needs `reference`), `gradient_norm` (a backward pass per text); by default all but the last.
        samples: Answers drawn per forget prompt, for leak@k; 0 draws none.
        temperature: Temperature of these draws.
        seed: Seed of these draws.
        tasks: Utility tasks of lm-eval (`mmlu,hellaswag`), on the model with and without the adapter
            (`expunge[lm-eval]`); the MMLU average enters the final score.
        task_path: Folder with task files of your own for lm-eval.
        limit: Rows per utility task; all when None.
        keep_predictions: Folder for the generated texts, so that `expunge score` can score them again (semeval, lume).
            They hold the texts of the forget set; nothing else that an evaluation writes does.
        mmlu: Accuracy on MMLU for the final score: a number in [0, 1] or a metrics file with `average_acc`.
        max_new_tokens: Longest generation, in tokens (muse has its own).
        join: How the model goes from prompt to completion (as for `unlearn`); `chat` puts prompts into the tokenizer's
            template, all others hand over the prompt as it is.
        dtype: `float32` (exact), `bfloat16`, or `auto` (the fastest that the device has).
        device: `auto`, `cpu`, `cuda`, `cuda:1` ...
        shard_base: As for `unlearn`; without `gradient_norm` and `tasks`.
        trust_remote_code: Run code that comes with the model.
        overwrite: Replace an earlier results file and earlier predictions.
    """

    model: str
    data: str | None = None
    output: str = ""
    adapter: str | None = None
    benchmark: Literal["semeval", "lume", "tofu", "muse", "custom"] = "semeval"
    split: str | None = None
    forget: str | None = None
    retain: str | None = None
    holdout: str | None = None
    columns: str | None = None
    reference: str | None = None
    attacks: str | None = None
    samples: int = 0
    temperature: float = 1.0
    seed: int = 0
    tasks: str | None = None
    task_path: str | None = None
    limit: int | None = None
    keep_predictions: str | None = None
    mmlu: str | None = None
    max_new_tokens: int = 256
    join: Literal["auto", "none", "space", "newline", "chat", "separate"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    device: str = "auto"
    shard_base: bool = False
    trust_remote_code: bool = False
    overwrite: bool = False

    def validate(self) -> None:
        """Check every range and every pair of settings that must agree; nothing is loaded.

        Raises:
            ConfigError: The first setting that cannot be used, named by its flag.
        """
        _check_types(self)
        custom, official = self.benchmark == "custom", self.benchmark in ("semeval", "lume")
        own_files = [f"--{name}" for name in ("forget", "retain", "holdout", "columns") if getattr(self, name)]
        unknown = [name for name in self.attack_names if name not in ATTACKS]
        checks = [
            (bool(self.model), "--model is missing: give a folder or a Hub name"),
            (bool(self.output), "--output is missing: give the results file to write"),
            (not self.output.endswith(".parquet"),
             f"--output {self.output}: that name is for the values of every row: end it in .json"),
            (custom or bool(self.data), f"--benchmark {self.benchmark} needs --data, its folder"),
            (custom or not own_files, f"--benchmark {self.benchmark} brings its own files: leave "
             f"{' and '.join(own_files)} out, or give --benchmark custom"),
            (not custom or bool(self.forget), "--forget is missing: custom measures your own texts"),
            (not custom or not self.data, "--data: --benchmark custom reads your own files: give --forget, --retain"),
            (not (custom or self.benchmark == "lume") or not self.split,
             f"--split {self.split}: --benchmark {self.benchmark} has no splits"),
            (not unknown, f"--attacks {self.attacks}: unknown {', '.join(unknown)}; known are {', '.join(ATTACKS)}"),
            ("reference" not in self.attack_names or bool(self.reference),
             "--attacks reference needs --reference, the model to compare with"),
            (self.max_new_tokens >= 1, f"--max-new-tokens {self.max_new_tokens}: must be at least 1"),
            (self.samples >= 0, f"--samples {self.samples}: must be 0 or more"),
            (0 < self.temperature < float("inf"), f"--temperature {self.temperature}: must be finite and above 0"),
            (0 <= self.seed < 2**32, f"--seed {self.seed}: must lie between 0 and 2^32 - 1"),
            (self.limit is None or self.limit >= 1, f"--limit {self.limit}: must be at least 1"),
            (bool(self.tasks) or not (self.limit or self.task_path), "--limit and --task-path need --tasks"),
            (self.tasks is None or bool(self.task_names), "--tasks is empty: give names separated by commas"),
            (not (self.shard_base and ("gradient_norm" in self.attack_names or self.tasks)),
             "--shard-base: neither --attacks gradient_norm nor --tasks can be measured on a sharded base"),
            (official or not self.mmlu, f"--mmlu: --benchmark {self.benchmark} has no final score: leave it out"),
            (not (self.mmlu and any(name.startswith("mmlu") for name in self.task_names)),
             "--mmlu and --tasks mmlu contradict each other: choose one"),
            (official or not self.keep_predictions,
             f"--keep-predictions: --benchmark {self.benchmark} has no stored form: leave it out"),
        ]  # fmt: skip
        for holds, message in checks:
            if not holds:
                raise ConfigError(message)

    @property
    def attack_names(self) -> list[str]:
        """The membership attacks that were asked for; empty for all cheap ones."""
        return _names(self.attacks)

    @property
    def task_names(self) -> list[str]:
        """The utility tasks."""
        return _names(self.tasks)


@dataclass
class CalibrateConfig:
    """What the strength of an adapter is chosen by.

    Attributes:
        run: Finished run; the adapter in it gets the strength.
        holdout: Texts like the forget set that the model has never seen; by default the run's, or the benchmark's.
        target: Membership AUC to come closest to, `auc=0.5` or a retrained model's.
        floor: Least share of the retain texts' probability to keep, as `retain=0.97`.
        ceiling: Largest relative change of the unseen texts' loss, as `drift=0.05`.
        dtype: `auto`, `float32` or `bfloat16`.
        device: `auto`, `cpu`, `cuda` ...
    """

    run: str
    holdout: str | None = None
    target: str = "auc=0.5"
    floor: str = "retain=0.97"
    ceiling: str = "drift=0.05"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"


def _check_types(config: "UnlearnConfig | EvaluateConfig") -> None:
    hints = get_type_hints(type(config))
    for name, value in vars(config).items():
        kinds = get_args(hints[name]) or (hints[name],)
        if get_origin(hints[name]) is Literal:
            fits = value in kinds
        else:
            literals = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
            types = tuple(kind for kind in kinds if isinstance(kind, type))
            number = isinstance(value, int) and not isinstance(value, bool) and float in types
            fits = value in literals or number or (isinstance(value, types) and (bool in types or value is not True))
        if not fits:
            expected = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds)
            raise ConfigError(f"--{name.replace('_', '-')} {value!r}: must be {expected}")


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]
