"""The settings of an evaluation."""

from dataclasses import dataclass
from typing import Literal

from expunge.config.checks import (
    ABOVE_ZERO,
    COUNT,
    POSITIVE,
    SEED,
    SHARE,
    Check,
    Plain,
    check_types,
    exclusive,
    first_failed,
    flag,
    other_origin,
)
from expunge.utils.text import comma_list

Benchmark = Literal["semeval", "lume", "tofu", "muse", "custom"]
OWN_FILES = ("forget", "retain", "test", "retain_test", "holdout", "instead", "columns")
"""Settings that say what a run on files of one's own was made with."""


@dataclass
class EvaluateConfig(Plain):
    """What an evaluation depends on.

    Attributes:
        run: Run directory: its model (in 4 bits where it was), adapter, prompt format, benchmark, split, data and
            columns stand where no flag does, and results go to RUN/results.json.
        model: Folder or Hub name of the model, or a run directory (its model with its adapter).
        revision: Branch, tag or commit of a name on the Hub; of the base where `model` is an adapter's folder.
        data: The benchmark's folder.
        output: Results file to write; the values of every row go to a .parquet file beside it.
        adapter: Run directory or adapter folder to put on the model.
        benchmark: `semeval` (default), `lume`, `tofu`, `muse`, or `custom` (your own files; with `forget` the default).
        split: The benchmark's split; by default the adapter's run's, else as for `unlearn`: semeval `train` or
            `validation` (default, where there are both); tofu `forget01`, `forget05` or `forget10` (default); muse
            `news` (default) or `books`. A plain folder of lume or semeval has none.
        forget: Custom: file or `datasets` name with the texts that must be forgotten.
        retain: Custom: texts that must be kept.
        test: Custom: texts that must be kept and were not trained on; they judge whether the rest is kept.
        retain_test: Custom: share of `retain` that was not trained on, as in `unlearn`; it is reported as `test`.
        holdout: Custom: texts like the forget set that the model has never seen; membership is measured against them.
        instead: Custom: what the model was taught to say instead, as in `unlearn`: none of it is unseen.
        paraphrased: Custom: the questions of `forget` in other words, by `id`, as `expunge elicit` writes them; they
            are asked too, and nothing is ever trained on them.
        columns: Custom: which column is what, as `prompt=...,completion=...[,id=...,task=...,keywords=...]`.
        reference: A model that never saw the forget set: every metric is shown for it too.
        origin: The checkpoint from before the model saw the forget set, where there is no retrained model: shown like
            `reference`, under its own name.
        attacks: Membership attacks, separated by commas; by default all that cost no backward pass.
        samples: Answers drawn per forget prompt, for leak@k; 0 draws none.
        temperature: Temperature of these draws.
        seed: Seed of these draws.
        tasks: Utility tasks of lm-eval (`mmlu,hellaswag`), on the model with and without the adapter
            (`expunge[lm-eval]`); the MMLU average enters the final score.
        task_path: Folder with task files of your own for lm-eval.
        limit: Rows per utility task; all when None.
        keep_predictions: Folder for the generated texts, so that `expunge score` can score them again (semeval, lume).
            They hold texts of the forget set.
        key_words: File for the forget rows with the key words that were looked for, to be read, mended and given again
            as `forget` (not for muse). It holds texts of the forget set, too; nothing else of an evaluation does.
        mmlu: Accuracy on MMLU for the final score: a number in [0, 1] or a metrics file with `average_acc`.
        max_new_tokens: Longest generation, in tokens (muse has its own, tofu at most 200).
        prompt_format: What stands between prompt and completion (as for `unlearn`); `chat` puts prompts into the
            tokenizer's template, all others hand over the prompt as it is. `auto`: that of the adapter's run, else
            measured on the model.
        end_of_text: Completions end with the end-of-text token (as for `unlearn`): `auto`, `yes` or `no`.
        dtype: `float32` (exact), `bfloat16`, or `auto` (the fastest that the device has).
        device: `auto`, `cpu`, `cuda`, `cuda:1` ...
        load_in_4bit: As for `unlearn`; `false` scores a run that was made in 4 bits on the whole weights.
        shard_base: As for `unlearn`; without `gradient_norm` and `tasks`.
        trust_remote_code: Run code that comes with the model.
        overwrite: Replace an earlier results file and earlier predictions.
    """

    run: str | None = None
    model: str = ""
    revision: str | None = None
    data: str | None = None
    output: str = ""
    adapter: str | None = None
    benchmark: Benchmark | None = None
    split: str | None = None
    forget: str | None = None
    retain: str | None = None
    test: str | None = None
    retain_test: float = 0.0
    holdout: str | None = None
    instead: str | None = None
    paraphrased: str | None = None
    columns: str | None = None
    reference: str | None = None
    origin: str | None = None
    attacks: str | None = None
    samples: int = 0
    temperature: float = 1.0
    seed: int = 0
    tasks: str | None = None
    task_path: str | None = None
    limit: int | None = None
    keep_predictions: str | None = None
    key_words: str | None = None
    mmlu: str | None = None
    max_new_tokens: int = 256
    prompt_format: Literal["auto", "none", "space", "newline", "chat", "separate"] = "auto"
    end_of_text: Literal["auto", "yes", "no"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "float32"
    device: str = "auto"
    load_in_4bit: bool | None = None
    shard_base: bool = False
    trust_remote_code: bool = False
    overwrite: bool = False

    def validate(self) -> None:
        """Check every range and every pair of settings that must agree; nothing is loaded.

        Raises:
            ConfigError: The first setting that cannot be used, named by its flag.
        """
        check_types(self)
        benchmark = self.chosen_benchmark
        custom, official = benchmark == "custom", benchmark in ("semeval", "lume")
        own_files = [flag(name) for name in (*OWN_FILES, "paraphrased") if getattr(self, name)]
        checks: list[Check] = [
            (bool(self.model), "--model is missing: give a folder or a Hub name, or --run"),
            (bool(self.output), "--output is missing: give the results file to write"),
            (not self.output.endswith(".parquet"),
             f"--output {self.output}: that name is for the values of every row: end it in .json"),
            (custom or bool(self.data), f"--benchmark {benchmark} needs --data, its folder"),
            (custom or not own_files, f"--benchmark {benchmark} brings its own files: leave "
             f"{' and '.join(own_files)} out, or give --benchmark custom"),
            (not custom or bool(self.forget), "--forget is missing: custom measures your own texts"),
            (not custom or not self.data, "--data: --benchmark custom reads your own files: give --forget, --retain"),
            *SHARE.of(self, "retain_test"),
            (not (custom or benchmark == "lume") or not self.split,
             f"--split {self.split}: --benchmark {benchmark} has no splits"),
            *exclusive(self, ("reference", "origin"), ("test", "retain_test")),
            other_origin(self),
            *POSITIVE.of(self, "max_new_tokens", "limit"),
            *COUNT.of(self, "samples"),
            *ABOVE_ZERO.of(self, "temperature"),
            *SEED.of(self, "seed"),
            (bool(self.tasks) or not (self.limit or self.task_path), "--limit and --task-path need --tasks"),
            (self.tasks is None or bool(self.task_names), "--tasks is empty: give names separated by commas"),
            (not (self.shard_base and self.tasks), "--shard-base: --tasks cannot be measured on a sharded base"),
            (not (self.shard_base and self.load_in_4bit),
             "--shard-base cannot share 4-bit weights: leave it out, or give --load-in-4bit false"),
            (official or not self.mmlu, f"--mmlu: --benchmark {benchmark} has no final score: leave it out"),
            (not (self.mmlu and any(name.startswith("mmlu") for name in self.task_names)),
             "--mmlu and --tasks mmlu contradict each other: choose one"),
            (official or not self.keep_predictions,
             f"--keep-predictions: --benchmark {benchmark} has no stored form: leave it out"),
            (benchmark != "muse" or not self.key_words,
             "--key-words: --benchmark muse looks for no key words: leave it out"),
        ]  # fmt: skip
        first_failed(checks)

    @property
    def chosen_benchmark(self) -> Benchmark:
        """The benchmark; where none is named your own files, if there are some and no `data`, else `semeval`."""
        return self.benchmark or ("custom" if self.forget and not self.data else "semeval")

    @property
    def attack_names(self) -> list[str]:
        """The membership attacks that were asked for; empty for all cheap ones."""
        return comma_list(self.attacks)

    @property
    def task_names(self) -> list[str]:
        """The utility tasks."""
        return comma_list(self.tasks)
