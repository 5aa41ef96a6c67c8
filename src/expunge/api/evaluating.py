"""`expunge.evaluate` and what it gives back."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from expunge.api.inputs import Texts, checked, given_texts, named_model
from expunge.config import EvaluateConfig
from expunge.errors import ConfigError
from expunge.evaluation.checks import is_run, resolved
from expunge.evaluation.estimate import Estimate
from expunge.evaluation.results import measured_metrics
from expunge.evaluation.run import evaluate as score
from expunge.evaluation.tables import metrics_table
from expunge.utils.isolated import isolated
from expunge.utils.progress import reporter_for


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation measured.

    Attributes:
        benchmark: `custom`, `semeval`, `lume`, `tofu` or `muse`.
        metrics: `<set>/<metric>[/<task>]` -> the number, its 95 % interval, direction and source.
        not_measured: What these numbers do not say, a sentence each.
        content: All of the results file.
        output: The results file; None where none was asked for.
    """

    benchmark: str
    metrics: Mapping[str, Estimate]
    not_measured: tuple[str, ...]
    content: Mapping[str, Any] = field(repr=False)
    output: Path | None = None

    def __getitem__(self, name: str) -> Estimate:
        return self.metrics[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.metrics)

    def __str__(self) -> str:
        return metrics_table(self.content)


@isolated
def evaluate(
    model: str | Path | PreTrainedModel | EvaluateConfig,
    *,
    output: str | Path | None = None,
    forget: Texts | None = None,
    retain: Texts | None = None,
    test: Texts | None = None,
    holdout: Texts | None = None,
    instead: Texts | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> Evaluation:
    """Measure a model, or a run on the texts that it was made with.

    Args:
        model: A run directory (results go to RUN/results.json), a folder, a Hub name, a transformers model, or all
            settings as a config.
        output: Results file to write; without one, and without a run, no file is written.
        forget: Texts that must be forgotten: as for `unlearn`. Of a run, its own files where none are given.
        retain: Texts that must be kept.
        test: Texts that must be kept and were not trained on.
        holdout: Texts like those to forget that the model has never seen.
        instead: What the model was taught to say instead.
        tokenizer: Of a model object.
        progress: As for `unlearn`.
        settings: Everything else that `EvaluateConfig` holds (`benchmark="tofu"`, `samples=5`, `overwrite=True`).

    Raises:
        UserError: The input or a setting is at fault; nothing has been written then.
    """
    reporter = reporter_for(progress)
    texts = given_texts(forget=forget, retain=retain, test=test, holdout=holdout, instead=instead)
    if isinstance(model, EvaluateConfig):
        if texts or settings or output or tokenizer:
            raise ConfigError("evaluate: give settings in the config, or a model and settings, not both")
        return _scored(model, score(model, reporter), keep=True)
    named: dict[str, Any] = {}
    if isinstance(model, str | Path) and is_run(str(model)) and not settings.get("adapter"):
        if tokenizer:
            raise ConfigError("tokenizer: a run is measured with its own: leave it out")
        named["run"] = str(model)
    else:
        trusted = bool(settings.get("trust_remote_code"))
        named |= named_model(model, tokenizer, str(output) if output else None, reporter, trust_remote_code=trusted)
        if texts and "benchmark" not in settings:
            named["benchmark"] = "custom"
    with _results_file(output, kept="run" in named) as file:
        config = checked(EvaluateConfig, **named, **texts, **({"output": str(file)} if file else {}), **settings)
        return _scored(config, score(config, reporter), keep=output is not None or "run" in named)


@contextmanager
def _results_file(output: str | Path | None, *, kept: bool) -> Iterator[str | Path | None]:
    """Where results go: as given, to the default place of a run, or to a folder that goes."""
    if output is not None or kept:
        yield output
    else:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder) / "results.json"


def _scored(config: EvaluateConfig, results: dict[str, Any], *, keep: bool) -> Evaluation:
    file = Path(resolved(config).output)
    return Evaluation(
        benchmark=str(results["benchmark"]),
        metrics=measured_metrics(file, results),
        not_measured=tuple(results["not_measured"]),
        content=results,
        output=file if keep else None,
    )
