"""The commands: each is a documented dataclass of settings and a function that runs them.

Heavy rooms are imported where a command runs, so that `--help` and a mistaken flag answer at once.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from expunge.cli.demo import DemoSettings, demo
from expunge.cli.elicit import elicit
from expunge.cli.output import NOT_AS_PROMISED, Output
from expunge.cli.reports import ReportSettings, VerdictSettings, report, verdict, write_run_report
from expunge.config import CalibrateConfig, ElicitConfig, EvaluateConfig, MergeConfig, UnlearnConfig
from expunge.config.checks import check_types
from expunge.errors import ConfigError, UserError
from expunge.evaluation.tables import facts_lines, loss_table, metrics_table, scale_table, semeval_table
from expunge.utils.ranks import is_writer
from expunge.utils.text import comma_list


@dataclass(frozen=True)
class Command:
    """One command, named and described by the function that does it.

    Attributes:
        run: Does it; gives the exit code. The first line of its docs is what help shows.
        schema: Its settings.
        example: One use of it.
        shown: The flags that `--help` shows; all when empty.
    """

    run: Callable[[Any, Output], int]
    schema: type
    example: str
    shown: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """How it is called."""
        return self.run.__name__

    @property
    def help(self) -> str:
        """What it does, in a line."""
        line = (self.run.__doc__ or "").partition("\n")[0].rstrip(".")
        return line[:1].lower() + line[1:]


def unlearn(settings: UnlearnConfig, out: Output) -> int:
    """Train an adapter that makes a model forget."""
    settings.validate()
    with out.starting():
        from expunge.evaluation.advice import Advisor
        from expunge.runs.record import read_manifest
        from expunge.runs.run import lacks_report, standing
        from expunge.train.dry_run import forecast
        from expunge.train.loop import unlearn as train

    if settings.dry_run:
        expected = forecast(settings, out.reporter())
        out.text(str(expected))
        out.results = dataclasses.asdict(expected)
        return 0
    try:
        outcome = train(settings, out.reporter(), advisor=Advisor)
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(str(error) or standing(settings)) from None
    except UserError:
        if settings.resume and lacks_report(settings):
            write_run_report(Path(settings.output), out)
        raise
    if is_writer():
        manifest = read_manifest(outcome.output / "manifest.json")
        losses = manifest["loss_nats_per_completion_token"]  # of few texts no more exact than there
        out.text(loss_table(losses, manifest["loss_texts"]))
        out.text(f"adapter   {outcome.adapter}")
        out.text(f"manifest  {outcome.output / 'manifest.json'}")
        out.results = {"output": str(outcome.output), "losses": losses, "steps": outcome.steps}
        write_run_report(outcome.output, out)
        if settings.push_to_hub:
            _push(outcome.output, settings.push_to_hub, settings.public, out)
    return 0


@dataclass(kw_only=True)
class PushSettings:
    """Settings of `push`.

    Attributes:
        run: Finished run, of which the adapter is uploaded, or folder of a merged model.
        push_to_hub: Repository on the Hub, as owner/name; it is made where it is not there.
        public: Make it one that everybody can read.
    """

    run: str
    push_to_hub: str
    public: bool = False


def push(settings: PushSettings, out: Output) -> int:
    """Upload an adapter, or a merged model, to the Hugging Face Hub."""
    _push(settings.run, settings.push_to_hub, settings.public, out)
    return 0


def _push(folder: str | Path, repo: str, public: bool, out: Output) -> None:
    from expunge.runs.hub import push as upload

    out.results["hub"] = upload(folder, repo, public=public)
    out.text(f"hub       {out.results['hub']} ({'public' if public else 'private'})")


def evaluate(settings: EvaluateConfig, out: Output) -> int:
    """Score a model or adapter on a benchmark."""
    with out.starting():
        from expunge.evaluation.checks import resolved
        from expunge.evaluation.results import other_subject, results_before
        from expunge.evaluation.run import evaluate as score

    settings = resolved(settings)
    settings.validate()
    if settings.adapter:
        results_before(settings.output, settings.benchmark or "")  # a damaged file is refused before any work
    results = score(settings, out.reporter())
    if not is_writer():
        return 0
    before = results_before(settings.output, settings.benchmark or "") if settings.adapter else None
    if before and (others := other_subject(before, results)):
        out.reporter().warn(f"results_before.json is not shown: its {others[0]} is not that of {settings.output}")
        before = None
    out.results = results
    if "task_aggregate" in results:
        shown = {"before": before, "after": results} if before else {"score": results}
        out.text(semeval_table(shown) + "\n")
    out.text(metrics_table(results, before))
    for line in facts_lines(results, before):
        out.text(line)
    for sentence in results["not_measured"]:
        out.text(f"note      {sentence}")
    rows = Path(settings.output).with_suffix(".parquet")
    out.text(f"results   {settings.output} and, for nobody else to read, the values of every row in {rows}")
    if settings.keep_predictions:
        out.text(f"predictions   {settings.keep_predictions} (they hold texts of the forget set)")
    if settings.key_words:
        out.text(f"key words {settings.key_words} (it holds texts of the forget set)")
    if settings.run and Path(settings.output).resolve().parent == Path(settings.run).resolve():
        out.text()
        write_run_report(Path(settings.run), out)
    return 0


@dataclass(kw_only=True)
class ScoreSettings:
    """Settings of `score`.

    Attributes:
        predictions: Folder of predictions, ours or the organisers'.
        output: Results file to write.
        benchmark: Whose scorer.
        mmlu: Accuracy on MMLU: a number or a metrics file.
        data: The benchmark's folder, to check the rows against.
        split: Its split; by default that of `evaluate`.
        overwrite: Replace `output`.
    """

    predictions: str
    output: str
    benchmark: Literal["semeval"] = "semeval"
    mmlu: str | None = None
    data: str | None = None
    split: str | None = None
    overwrite: bool = False


def score(settings: ScoreSettings, out: Output) -> int:
    """Score stored generations, without a model."""
    from expunge.evaluation.run import score_predictions

    options = {name: getattr(settings, name) for name in ("mmlu", "data", "split", "overwrite")}
    out.results = score_predictions(settings.predictions, settings.output, **options)
    out.text(semeval_table({"score": out.results}) + "\n")
    out.text(metrics_table(out.results))
    out.text(f"results   {settings.output}")
    return 0


@dataclass(kw_only=True)
class CompareSettings:
    """Settings of `compare`.

    Attributes:
        results: Results files or run directories; A.json,B.json are pooled as two runs.
        format: How to write it; by the ending of `output`, else a table.
        output: File to write instead of the terminal.
        metrics: Metrics to show, as `*auc*,forget/*`.
        names: Titles of the columns, separated by commas.
        pool: All results are runs (seeds) of one configuration.
        paired: Differences from the first, row by row.
        overwrite: Replace `output`.
    """

    results: list[str]
    format: Literal["table", "csv", "latex"] | None = None
    output: str | None = None
    metrics: str | None = None
    names: str | None = None
    pool: bool = False
    paired: bool = False
    overwrite: bool = False


def compare(settings: CompareSettings, out: Output) -> int:
    """Results files side by side."""
    from expunge.evaluation.compare import compare as put_together
    from expunge.evaluation.compare import write_comparison
    from expunge.evaluation.compare_formats import FORMATS, format_of

    comparison = put_together(
        settings.results,
        names=comma_list(settings.names) if settings.names else None,
        pool=settings.pool,
        paired=settings.paired,
        patterns=comma_list(settings.metrics),
    )
    out.results = dataclasses.asdict(comparison)
    text = FORMATS[settings.format or format_of(settings.output)](comparison)
    if settings.output is None:
        out.text(text)
        return 0
    write_comparison(settings.output, text + "\n", comparison, overwrite=settings.overwrite)
    out.text(f"comparison   {settings.output}")
    return 0


def calibrate(settings: CalibrateConfig, out: Output) -> int:
    """Set the scale of a finished adapter by texts that the model has never seen."""
    with out.starting():
        from expunge.train.calibrate import calibrate as choose

    found = choose(settings, out.reporter())
    out.results = dataclasses.asdict(found)
    out.text(scale_table([dataclasses.asdict(metrics) for metrics in found.curve], found.scale))
    out.text(f"scale         {found.scale:g} times the trained one, written into {Path(settings.run) / 'adapter'}")
    out.text(f"criteria      {'met' if found.reached else 'NOT MET'}: {found.verdict}")
    out.text("note          scores and page that are there are of the scale before: evaluate, then report, again")
    return 0 if found.reached else NOT_AS_PROMISED


@dataclass(kw_only=True)
class MergeSettings(MergeConfig):
    """Settings of `merge`.

    Attributes:
        strict: End with exit code 3 also when the run's verdict is not a success, not only when rounding the weights
            (to bfloat16, say) has taken the forgetting back.
    """

    strict: bool = False


def merge(settings: MergeSettings, out: Output) -> int:
    """Write adapter and base as one plain model."""
    with out.starting():
        from expunge.report import verdict
        from expunge.train.merge import merge as write_merged

    found = write_merged(settings, out.reporter())
    digits = 1 if found.off is None else 3
    shown = "  ".join(f"{name} {loss:.{digits}f}" for name, loss in found.losses.items())
    out.text(f"merged model             {found.output} ({found.dtype})")
    out.text(f"largest difference       {found.max_logp_difference:.2e} nats in a token's log-probability")
    out.text(f"loss on the forget set   {shown} (nats per completion token)")
    for note in found.notes:
        out.text(f"note                     {note}")
    by = "at most" if found.off is None else f"{found.off:+.2g} nats, of at most {found.bound:.2g}:"
    within = f"the merged model's loss is off by {by} a tenth of its rise"
    kept = f"survives the rounding: {within}" if found.survives else f"DOES NOT SURVIVE: {found.reason}"
    out.text(f"forgetting               {kept}")
    out.results = {**dataclasses.asdict(found), "output": str(found.output)}
    if not (found.survives and settings.strict):
        return 0 if found.survives else NOT_AS_PROMISED
    judged = verdict(settings.run)
    out.text(f"verdict                  {judged.lead} (`expunge verdict {settings.run}`)")
    return 0 if judged.success else NOT_AS_PROMISED


COMMANDS = {
    command.name: command
    for command in (
        Command(demo, DemoSettings, "expunge demo"),
        Command(
            elicit,
            ElicitConfig,
            'expunge elicit --model MODEL --about "NAME" --output forget.jsonl --neighbours retain.jsonl',
            ("model", "about", "alias", "kind", "output", "neighbours", "dry_run"),
        ),
        Command(
            unlearn,
            UnlearnConfig,
            "expunge unlearn --model MODEL --forget f.jsonl --retain r.jsonl --holdout unseen.jsonl --output runs/one",
            ("model", "forget", "retain", "holdout", "instead", "output", "dry_run"),
        ),
        Command(
            evaluate,
            EvaluateConfig,
            "expunge evaluate --run runs/one",
            ("run", "model", "adapter", "benchmark", "data", "output", "reference"),
        ),
        Command(score, ScoreSettings, "expunge score --predictions predictions --output results.json"),
        Command(compare, CompareSettings, "expunge compare before.json after.json --paired"),
        Command(report, ReportSettings, "expunge report runs/one --overwrite"),
        Command(verdict, VerdictSettings, "expunge verdict runs/one --strict"),
        Command(calibrate, CalibrateConfig, "expunge calibrate --run runs/one --target-auc 0.5"),
        Command(merge, MergeSettings, "expunge merge --run runs/one --output merged"),
        Command(push, PushSettings, "expunge push --run merged --push-to-hub owner/name"),
    )
}
"""Name -> command."""


def recorded(given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the run that `--from-manifest` repeats, or that `--resume` goes on with; nothing without them.

    Raises:
        ConfigError: One that was given is of another type, or there is no run to go on with.
        RunError: The run's settings cannot be read.
    """
    asked = UnlearnConfig(**{"model": "", **given})
    check_types(asked)
    if asked.from_manifest is not None:
        from expunge.runs.settings import recorded_settings

        found = recorded_settings(asked.from_manifest, asked.model)
        if given.get("loss", found.get("loss")) != found.get("loss"):
            del found["loss_args"]  # of another loss
        return found
    if asked.resume and asked.output:
        from expunge.runs.settings import resumed_settings

        if found := resumed_settings(asked.output, asked.model):
            return found
        if not asked.model:
            raise ConfigError(f"--resume: {asked.output} holds no run that was begun: look at --output")
    return {}
