"""`expunge.unlearn` and what it gives back."""

import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from expunge.api.evaluating import Evaluation, evaluate
from expunge.api.finished import load_unlearned, merge
from expunge.api.inputs import Texts, checked, given_texts, named_model
from expunge.config import UnlearnConfig
from expunge.errors import ConfigError
from expunge.evaluation.advice import Advisor
from expunge.report import Verdict, verdict, write_cards, write_report
from expunge.report.run_data import read_run
from expunge.runs.directory import check_new
from expunge.runs.hub import push
from expunge.runs.run import Outcome as Written
from expunge.runs.settings import run_settings
from expunge.train import dry_run, loop
from expunge.train.callbacks import Callback, check_callbacks
from expunge.train.merge import MergeReport
from expunge.utils.isolated import isolated
from expunge.utils.progress import Reporter, reporter_for
from expunge.utils.ranks import is_writer


@dataclass(frozen=True)
class Outcome(Written):
    """A finished run, and what can be done with it.

    Attributes:
        texts: Set -> the texts that were given, as long as the process lasts: no file of the run holds those that were
            in memory. A pickle of the outcome, as it comes back from a worker process, does.
    """

    texts: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def verdict(self) -> Verdict:
        """Four questions on the run, answered by what was measured so far."""
        return verdict(self.output)

    def report(self, output: str | Path | None = None, *, overwrite: bool = True, **options: Any) -> Path:
        """Write the page on the run (RUN/report.html) and bring its card up to date; options as for `write_report`."""
        run = read_run(self.output)
        write_cards([run])
        return write_report([run], output, overwrite=overwrite, **options)

    def evaluate(self, **settings: Any) -> Evaluation:
        """Score the run on its own texts, or on its benchmark's; settings as for `expunge.evaluate`."""
        benchmark = settings.get("benchmark") or run_settings(str(self.output)).benchmark or "custom"
        texts = self.texts if benchmark == "custom" else {}
        return evaluate(self.output, **{**texts, **settings})

    def merge(self, output: str | Path, **options: Any) -> MergeReport:
        """Write adapter and base as one plain model; options as for `expunge.merge`."""
        texts = {name: text for name, text in self.texts.items() if name in ("forget", "retain")}
        return merge(self.output, output, **{**texts, **options})

    def push_to_hub(self, repo: str, *, public: bool = False) -> str:
        """Upload the adapter and its card to a repository on the Hub, private unless `public`; gives its address."""
        return push(self.output, repo, public=public)

    def load(self, **options: Any) -> tuple[PeftModel, PreTrainedTokenizerBase]:
        """The base with the adapter on, and the tokenizer; options as for `load_unlearned`."""
        return load_unlearned(str(self.output), **options)


@isolated
def unlearn(
    model: str | Path | PreTrainedModel | UnlearnConfig,
    *,
    output: str | Path | None = None,
    forget: Texts | None = None,
    retain: Texts | None = None,
    test: Texts | None = None,
    holdout: Texts | None = None,
    instead: Texts | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
    callbacks: Sequence[Callback] = (),
    progress: bool | None = None,
    **settings: Any,
) -> Outcome:
    """Train an adapter that makes the model forget, and write the run directory.

    Args:
        model: A folder, a Hub name, a transformers model (which is left as it is; the run loads its own copy), or all
            settings as a config.
        output: Run directory to write.
        forget: Texts to forget: a file, a `datasets` name or object, a data frame, or a list of dicts or of texts.
        retain: Texts to keep.
        test: Texts to keep that are never trained on, which say what was kept; by default a fifth of `retain`.
        holdout: Texts like those to forget that the model has never seen.
        instead: What the model should say instead.
        tokenizer: Of a model object; that of the folder that it came from when None.
        callbacks: Called after steps and evaluation steps; they may ask the run to stop.
        progress: Shown, or not; None shows it in a terminal and a notebook, and logs it (logger `expunge`) elsewhere.
        settings: Everything else that `UnlearnConfig` holds (`epochs=3`, `lora_rank=8`, `resume=True`).

    Returns:
        Where things are, the losses before and after, and what can be done next.

    Raises:
        UserError: The input or a setting is at fault (nothing has been written then), or training cannot go on.
    """
    check_callbacks(callbacks)
    reporter = reporter_for(progress)
    texts = {"forget": forget, "retain": retain, "test": test, "holdout": holdout, "instead": instead}
    config = _config(model, output, texts, tokenizer, settings, reporter)
    done = loop.unlearn(config, reporter, callbacks, Advisor)
    given = {name: value for name in texts if (value := getattr(config, name))}
    if config.push_to_hub and is_writer():
        push(done.output, config.push_to_hub, public=config.public)
    return Outcome(**{entry.name: getattr(done, entry.name) for entry in dataclasses.fields(done)}, texts=given)


@isolated
def forecast(
    model: str | Path | PreTrainedModel | UnlearnConfig,
    *,
    output: str | Path | None = None,
    forget: Texts | None = None,
    retain: Texts | None = None,
    test: Texts | None = None,
    holdout: Texts | None = None,
    instead: Texts | None = None,
    progress: bool | None = None,
    **settings: Any,
) -> dry_run.Forecast:
    """What a run would take in steps, memory and time, from a few real steps; writes nothing.

    Arguments and errors are those of `unlearn`, which takes a tokenizer and callbacks, too.
    """
    texts = {"forget": forget, "retain": retain, "test": test, "holdout": holdout, "instead": instead}
    reporter = reporter_for(progress)
    if isinstance(model, PreTrainedModel):
        trusted = bool(settings.get("trust_remote_code"))
        model = named_model(model, None, None, reporter, trust_remote_code=trusted)["model"]
    if output is None and not isinstance(model, UnlearnConfig):
        output = Path(tempfile.gettempdir()) / f"expunge-forecast-{os.getpid()}"  # nothing is written
    return dry_run.forecast(_config(model, output, texts, None, settings, reporter), reporter)


def _config(
    model: str | Path | PreTrainedModel | UnlearnConfig,
    output: str | Path | None,
    texts: Mapping[str, Texts | None],
    tokenizer: PreTrainedTokenizerBase | None,
    settings: Mapping[str, Any],
    reporter: Reporter,
) -> UnlearnConfig:
    given = {**given_texts(**texts), **settings}
    if isinstance(model, UnlearnConfig):
        if given or tokenizer or output:
            raise ConfigError("unlearn: give settings in the config, or a model and settings, not both")
        return model
    if output is None:
        raise ConfigError("output is missing: give the run directory to write")
    named: dict[str, Any] = {"model": "", "output": str(output), **given}
    config: UnlearnConfig = checked(UnlearnConfig, **{**named, "model": "given"})
    config.validate()
    if not isinstance(model, str | Path) and not config.resume:
        check_new(config.output, overwrite=config.overwrite)  # before a model is written beside it
    trusted = config.trust_remote_code
    return UnlearnConfig(**(named | named_model(model, tokenizer, config.output, reporter, trust_remote_code=trusted)))
