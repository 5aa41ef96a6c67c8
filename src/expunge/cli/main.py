"""The command line: one subcommand, one call.

Exit codes: 0 done; 2 the user's input is at fault (one line, nothing overwritten); 1 a bug; 130 interrupted.
"""

import dataclasses
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace

from expunge.cli.arguments import flags, normalize, parse, read_config
from expunge.config import RECIPES, CalibrateConfig, EvaluateConfig, UnlearnConfig
from expunge.errors import ConfigError, UserError, outside_cause
from expunge.utils.interrupt import Interruptions
from expunge.utils.progress import printable
from expunge.utils.tables import loss_table, metrics_table, semeval_table, strength_table

COMMANDS = {
    "demo": "make the bundled model forget made-up people, and show it",
    "unlearn": "train an adapter that makes a model forget",
    "evaluate": "score a model or adapter on a benchmark",
    "score": "score stored generations, without a model",
    "compare": "results files side by side",
    "report": "a page on one run or several: what was forgotten, what it cost, how sure that is",
    "calibrate": "set the strength of a finished adapter by texts that the model has never seen",
    "merge": "write adapter and base as one plain model",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    arguments = normalize(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [word for word in arguments if word != "--debug"]
    os.umask(0o077)
    warnings.simplefilter("ignore", FutureWarning)  # deprecations inside libraries are not for users
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    interruptions = Interruptions()
    try:
        with interruptions.heed():
            return _dispatch(arguments)
    except (UserError, ArgumentError) as error:
        if debug:
            traceback.print_exc()
        message = printable(" ".join(str(error).split()))
        sys.stderr.write(f"expunge: error: {message}\n")
        return 2
    except KeyboardInterrupt as error:
        if os.environ.get("RANK", "0") == "0":  # of several processes, the first speaks
            sys.stderr.write(f"expunge: interrupted{f': {error}' if str(error) else ''}\n")
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except Exception as error:
        if interruptions.seen:
            sys.stderr.write("expunge: interrupted\n")
            return 130
        if not debug and (mend := outside_cause(error)):
            sys.stderr.write(f"expunge: error: {printable(mend)}\n")
            return 2
        traceback.print_exc()
        sys.stderr.write("expunge: this is a bug in Expunge; the traceback above says where\n")
        return 1


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from importlib.metadata import version

        print(f"expunge {version('expunge')}")
        return 0
    command, *rest = arguments
    if command not in COMMANDS:
        raise ConfigError(f"unknown command {command}: known are {', '.join(COMMANDS)}")
    parser = ArgumentParser(prog=f"expunge {command}", description=COMMANDS[command], exit_on_error=False)
    values = globals()[f"_{command}_arguments"](parser, rest)
    return globals()[f"_{command}"](values)


def _usage() -> str:
    lines = [f"  expunge {name:<10}{text}" for name, text in COMMANDS.items()]
    tail = "`expunge COMMAND --help` lists the options of one; `--debug` with any shows the traceback of an error."
    return "\n".join(["usage: expunge COMMAND [options]", "", *lines, "", tail])


# --- demo ----------------------------------------------------------------------------------------


def _demo_arguments(parser: ArgumentParser, arguments: list[str]) -> Namespace:
    parser.add_argument("--output", type=str, default="expunge-demo", help="run directory to write")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace an earlier run in --output")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run")
    return parse(parser, arguments)


def _demo(values: Namespace) -> int:
    from expunge.demo.run import run_demo
    from expunge.utils.progress import Reporter

    result = run_demo(values.output, Reporter(), overwrite=values.overwrite, seed=values.seed)
    print(f"{result}\n")
    print(f"adapter   {result.output / 'adapter'}")
    print(f"results   {result.output / 'results_after.json'} (and _before, _retrained)")
    _write_run_report(result.output)
    return 0


# --- unlearn -------------------------------------------------------------------------------------


def _unlearn_arguments(parser: ArgumentParser, arguments: list[str]) -> Namespace:
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of settings; flags after it win")
    parser.add_class_arguments(UnlearnConfig)
    recipe = _recipe(arguments)
    if recipe not in RECIPES:
        raise ConfigError(f"--recipe {recipe}: unknown; known are {', '.join(RECIPES)}")
    parser.set_defaults(RECIPES[recipe] | {"recipe": recipe} | _recorded(arguments))
    return parse(parser, arguments)


def _recorded(arguments: list[str]) -> dict[str, Any]:
    """The settings of the run that is to be repeated."""
    name = dict(flags(arguments)).get("--from_manifest")
    if name is None:
        return {}
    from expunge.runs.manifest import recorded_settings

    return recorded_settings(name)


def _recipe(arguments: list[str]) -> str:
    """The recipe that flags or the config file ask for, or that goes with the others: its values lie under them."""
    found: dict[str, Any] = {}
    for name, value in flags(arguments):
        if name == "--config" and Path(value).is_file():
            found |= read_config(value)
        else:
            found[name.removeprefix("--")] = value
    if "recipe" in found or not ("holdout" in found or "benchmark" in found) or "help" in found:
        return str(found.get("recipe", "default"))
    from expunge.train.setup import fitting_recipe

    return fitting_recipe(found)


def _unlearn(values: Namespace) -> int:
    settings = UnlearnConfig(**{name: value for name, value in values.as_dict().items() if name != "config"})
    settings.validate()
    from expunge.runs.run import is_writer, lacks_report, standing
    from expunge.train.dry_run import forecast
    from expunge.train.loop import unlearn
    from expunge.utils.progress import Reporter

    if settings.dry_run:
        print(forecast(settings, Reporter()))
        return 0
    try:
        outcome = unlearn(settings, Reporter(quiet=not is_writer()))
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(str(error) or standing(settings)) from None
    except UserError:
        if settings.resume and lacks_report(settings):
            _write_run_report(Path(settings.output))
        raise
    if not is_writer():
        return 0
    print(loss_table(outcome.losses))
    print(f"adapter   {outcome.adapter}")
    print(f"manifest  {outcome.output / 'manifest.json'}")
    _write_run_report(outcome.output)
    return 0


# --- evaluate and score --------------------------------------------------------------------------


def _evaluate_arguments(parser: ArgumentParser, arguments: list[str]) -> Namespace:
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file of settings; flags after it win")
    parser.add_class_arguments(EvaluateConfig)
    for name, value in flags(arguments):
        if name == "--config" and Path(value).is_file():
            read_config(value)
    return parse(parser, arguments)


def _evaluate(values: Namespace) -> int:
    from expunge.evaluation.results import results_before
    from expunge.evaluation.run import evaluate
    from expunge.runs.run import is_writer
    from expunge.utils.progress import Reporter

    settings = EvaluateConfig(**{name: value for name, value in values.as_dict().items() if name != "config"})
    before = results_before(settings.output, settings.benchmark) if settings.adapter else None
    results = evaluate(settings, Reporter(quiet=not is_writer()))
    if not is_writer():
        return 0
    if "task_aggregate" in results:
        shown = {"before": before, "after": results} if before else {"score": results}
        print(printable(semeval_table(shown)) + "\n")
    print(printable(metrics_table(results, before)))
    for sentence in results["not_measured"]:
        print(printable(f"note      {sentence}"))
    print(f"results   {settings.output} and the values of every row in {Path(settings.output).with_suffix('.parquet')}")
    if settings.keep_predictions:
        print(f"predictions   {settings.keep_predictions} (they hold texts of the forget set)")
    return 0


def _score_arguments(parser: ArgumentParser, arguments: list[str]) -> Namespace:
    parser.add_argument("--benchmark", type=Literal["semeval"], default="semeval", help="semeval")
    parser.add_argument("--predictions", type=str, required=True, help="folder of predictions, ours or the organisers'")
    parser.add_argument("--output", type=str, required=True, help="results file to write")
    parser.add_argument("--mmlu", type=str | None, default=None, help="accuracy on MMLU: a number or a metrics file")
    parser.add_argument("--data", type=str | None, help="the benchmark's folder, to check the rows against")
    parser.add_argument("--split", type=str, default="validation", help="its split")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace --output")
    return parse(parser, arguments)


def _score(values: Namespace) -> int:
    from expunge.evaluation.run import score_predictions

    settings = {name: getattr(values, name) for name in ("mmlu", "data", "split", "overwrite")}
    results = score_predictions(values.predictions, values.output, **settings)
    print(printable(semeval_table({"score": results})))
    print()
    print(printable(metrics_table(results)))
    print(f"results   {values.output}")
    return 0


# --- compare -------------------------------------------------------------------------------------


def _compare_arguments(parser: ArgumentParser, arguments: list[str]) -> Namespace:
    parser.add_argument(
        "results", nargs="+", type=str, help="results files or run directories; A.json,B.json are pooled as two runs"
    )
    parser.add_argument(
        "--format", type=Literal["table", "csv", "latex"] | None, help="by the ending of --output, else a table"
    )
    parser.add_argument("--output", type=str | None, help="file to write instead of the terminal")
    parser.add_argument("--metrics", type=str | None, help="metrics to show, as *auc*,forget/*")
    parser.add_argument("--names", type=str | None, help="titles of the columns, separated by commas")
    parser.add_argument("--pool", action="store_true", help="all results are runs (seeds) of one configuration")
    parser.add_argument("--paired", action="store_true", help="differences from the first, row by row")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace --output")
    return parse(parser, arguments)


def _compare(values: Namespace) -> int:
    from expunge.evaluation.compare import compare, write_comparison
    from expunge.evaluation.compare_formats import FORMATS, format_of

    comparison = compare(
        values.results,
        names=values.names.split(",") if values.names else None,
        pool=values.pool,
        paired=values.paired,
        patterns=[pattern for pattern in (values.metrics or "").split(",") if pattern],
    )
    text = FORMATS[values.format or format_of(values.output)](comparison)
    if values.output is None:
        print(text if values.format else printable(text))
        return 0
    write_comparison(values.output, text + "\n", comparison, overwrite=values.overwrite)
    print(f"comparison   {values.output}")
    return 0


# --- report --------------------------------------------------------------------------------------


def _report_arguments(parser: ArgumentParser, arguments: list[str]) -> Namespace:
    parser.add_argument("runs", nargs="+", type=str, help="run directories; those that differ in the seed are pooled")
    parser.add_argument("--output", type=str | None, help="page to write; RUN/report.html of a single run")
    parser.add_argument("--figures", type=str | None, help="folder for the figures (PNG, SVG, PDF) and a LaTeX table")
    parser.add_argument("--show_examples", type=int, default=0, help="texts of the FORGET SET to put on the page")
    parser.add_argument("--card", action="store_true", help="bring the model cards in the runs up to date with results")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace --output and --figures")
    return parse(parser, arguments)


def _report(values: Namespace) -> int:
    from expunge.report import write_cards, write_report

    options = {"figures": values.figures, "show_examples": values.show_examples, "overwrite": values.overwrite}
    page = write_report(values.runs, values.output, **options)
    cards = write_cards(values.runs) if values.card else []
    print(f"report    {page}" + (" (it holds texts of the forget set)" if values.show_examples else ""))
    for name, path in (("figures", values.figures), *(("card", card) for card in cards)):
        if path:
            print(f"{name:<10}{path}")
    return 0


def _write_run_report(run: Path) -> None:
    """The page and the card of a run that has just ended."""
    from expunge.report import verdict_sentence, write_cards, write_report

    write_cards([run])
    page = write_report([run], overwrite=True)
    print(verdict_sentence(run))
    print(f"report    {page}")


# --- calibrate -----------------------------------------------------------------------------------


def _calibrate_arguments(parser: ArgumentParser, arguments: list[str]) -> Namespace:
    parser.add_class_arguments(CalibrateConfig)
    return parse(parser, arguments)


def _calibrate(values: Namespace) -> int:
    from expunge.train.calibrate import calibrate
    from expunge.utils.progress import Reporter

    found = calibrate(CalibrateConfig(**values.as_dict()), Reporter())
    print(strength_table([dataclasses.asdict(signals) for signals in found.curve], found.scale))
    print(f"strength      {found.scale:g} times the trained one, written into {Path(values.run) / 'adapter'}")
    print(f"target        {'reached' if found.reached else 'NOT REACHED'}: {found.verdict}")
    print("note          scores and page that are there are of the strength before: evaluate, then report, again")
    return 0


# --- merge ---------------------------------------------------------------------------------------


def _merge_arguments(parser: ArgumentParser, arguments: list[str]) -> Namespace:
    parser.add_argument("--run", type=str, required=True, help="run directory with the adapter")
    parser.add_argument("--output", type=str, required=True, help="folder for the merged model")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu, cuda ...")
    parser.add_argument("--overwrite", type=bool, default=False, help="replace --output")
    parser.add_argument("--trust_remote_code", type=bool, default=False, help="run code that comes with the model")
    return parse(parser, arguments)


def _merge(values: Namespace) -> int:
    from expunge.train.merge import merge

    options = {name: getattr(values, name) for name in ("device", "overwrite", "trust_remote_code")}
    report = merge(values.run, values.output, **options)
    shown = "  ".join(f"{name} {loss:.3f}" for name, loss in report.losses.items())
    print(f"merged model             {report.output} ({report.dtype})")
    print(f"largest difference       {report.max_logp_difference:.2e} nats in a token's log-probability")
    print(f"loss on the forget set   {shown} (nats per completion token)")
    print(f"forgetting               {'survives the rounding' if report.survives else 'DOES NOT SURVIVE the rounding'}")
    return 0
