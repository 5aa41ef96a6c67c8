"""`expunge evaluate` and `expunge score`: from a model, or from stored predictions, to a results file."""

from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from statistics import median
from typing import Any

from expunge.config import EvaluateConfig
from expunge.data.holdout import length, read_calibration, without_selection
from expunge.data.tokenize import Join
from expunge.errors import DataError
from expunge.evaluation.assemble import assemble, assemble_scored
from expunge.evaluation.benchmarks import BENCHMARKS, lume
from expunge.evaluation.benchmarks.engine import Options, measure
from expunge.evaluation.benchmarks.measurement import Measurement
from expunge.evaluation.benchmarks.suite import Suite
from expunge.evaluation.checks import (
    check_output,
    check_predictions,
    check_reference,
    check_same_rows,
    mismatches,
)
from expunge.evaluation.examples_file import examples_path, write_examples
from expunge.evaluation.predictions import Predictions, read_any, read_mmlu, write_predictions
from expunge.evaluation.results import write_results
from expunge.model.adapter import adapter_folder, attach_adapter
from expunge.model.load import LoadedModel, load_model, load_shared, pick_device
from expunge.model.prompt_format import measure_join
from expunge.utils.distributed import Processes, current, together
from expunge.utils.files import adapter_fingerprint
from expunge.utils.progress import Reporter

SHORTER = 0.8
"""Texts of less than this share of the others' length are shorter."""


def evaluate(config: EvaluateConfig, reporter: Reporter | None = None) -> dict[str, Any]:
    """Measure a model, with an adapter on it or not, and write the results and the values of every row.

    Args:
        config: The settings.
        reporter: Where progress goes; silent when None.

    Returns:
        The content of the results file.

    Raises:
        UserError: The input or a setting is at fault; nothing has been written then.
    """
    reporter = reporter or Reporter(quiet=True)
    config.validate()
    with together(pick_device(config.device)) as processes:
        return _evaluate(config, reporter, processes)


def _evaluate(config: EvaluateConfig, reporter: Reporter, processes: Processes) -> dict[str, Any]:
    check_output(config.output, overwrite=config.overwrite)
    if config.keep_predictions:
        check_predictions(config.keep_predictions, overwrite=config.overwrite)
    mmlu = read_mmlu(config.mmlu) if config.mmlu else None
    benchmark = BENCHMARKS[config.benchmark]
    suite = benchmark.read(config)
    adapter = adapter_folder(config.adapter).resolve() if config.adapter else None
    if adapter:
        run = adapter.parent
        suite = reported(suite, run)
        for mismatch in mismatches(run, config, suite.split):
            reporter.warn(mismatch)
    if config.tasks:
        from expunge.evaluation.utility import check_tasks

        check_tasks(config.task_names, config.task_path)
    if config.reference:
        check_reference(config.model, config.reference, suite, trust_remote_code=config.trust_remote_code)

    loaded = _load(config, config.model)
    join = _join(loaded, suite, config, reporter)
    options = Options(config.max_new_tokens, config.attack_names, config.samples, config.temperature, config.seed)
    reference = None
    if config.reference:
        reporter.say(f"reference: {config.reference}")
        reference = measure(_load(config, config.reference), suite, join, options, reporter=reporter)
    if config.adapter:
        attach_adapter(loaded, config.adapter)
    measurement = measure(loaded, suite, join, options, reference=reference, reporter=reporter)
    utility = _utility(loaded, config, reporter)
    results = assemble(
        config.benchmark,
        benchmark,
        suite,
        measurement,
        reference=reference,
        reference_name=config.reference,
        mmlu=utility.mmlu if mmlu is None else mmlu,
        utility=utility.entries,
        model=config.model,
        adapter=config.adapter,
        adapter_sha256=adapter_fingerprint(adapter) if adapter else None,
        settings=_settings(config, loaded, join, suite, measurement),
    )
    if processes.index > 0:  # the first one writes
        return results
    if config.keep_predictions:
        said = lume.predictions_of(measurement, suite)
        write_predictions(config.keep_predictions, said, overwrite=config.overwrite)
    table = measurement.table(suite.documents.names if suite.documents else None)
    write_examples(examples_path(config.output), {**table, **utility.rows}, overwrite=config.overwrite)
    write_results(config.output, results, overwrite=config.overwrite)
    return results


def reported(suite: Suite, run: Path) -> Suite:
    """The suite without the membership texts that the strength of the run's adapter was chosen on.

    Raises:
        DataError: None is left.
    """
    documents = suite.documents
    calibration = read_calibration(run)
    if documents is None or calibration is None:
        return suite
    sides = [without_selection(side, calibration) for side in (documents.members, documents.nonmembers)]
    if not all(sides):
        raise DataError(f"--adapter {run}: its strength was chosen on every membership text: none is left to report on")
    note = (
        f"Membership is reported on the {len(sides[0])} and {len(sides[1])} texts that the adapter's strength was not "
        f"chosen on (of {len(documents.members)} and {len(documents.nonmembers)})."
    )
    left = list(chain(*sides))
    known = set(map(id, left))
    chosen = [own for own in chain(documents.members, documents.nonmembers) if id(own) not in known]
    if chosen and median(map(length, left)) < SHORTER * median(map(length, chosen)):
        note += " They are mostly shorter than those, so their numbers are not those that the run said of itself."
    kept = replace(documents, members=sides[0], nonmembers=sides[1])
    return replace(suite, documents=kept, not_measured=(*suite.not_measured, note), given=suite.fingerprints())


def score_predictions(
    predictions: str,
    output: str,
    *,
    mmlu: str | None = None,
    data: str | None = None,
    split: str = "validation",
    overwrite: bool = False,
) -> dict[str, Any]:
    """Score stored generations, Expunge's own or the organisers', and write the results file.

    Args:
        predictions: Their folder.
        output: Results file to write.
        mmlu: Accuracy on MMLU: a number or a metrics file.
        data: The benchmark's folder; the predictions must then be for its rows.
        split: Its split.
        overwrite: Replace `output`.

    Raises:
        DataError: The folder holds no predictions that can be read, or they are for other rows.
        RunError: `output` exists and `overwrite` is off.
    """
    check_output(output, overwrite=overwrite)
    accuracy = read_mmlu(mmlu) if mmlu else None
    found: Predictions = read_any(predictions)
    if data:
        check_same_rows(predictions, found, data, split)
    results = assemble_scored(found, accuracy)
    write_results(output, results, overwrite=overwrite)
    return results


@dataclass(frozen=True)
class _Utility:
    entries: dict[str, Any]
    rows: dict[tuple[str, str], Any]
    mmlu: float | None


def _utility(loaded: LoadedModel, config: EvaluateConfig, reporter: Reporter) -> _Utility:
    """The utility tasks, on the model and, under an adapter, on the untouched one."""
    if not config.tasks:
        return _Utility({}, {}, None)
    from expunge.evaluation.utility import mmlu_average, run_tasks, task_entries, task_rows

    options = {"task_path": config.task_path, "limit": config.limit}
    reporter.say(f"utility tasks: {', '.join(config.task_names)}")
    after, before = run_tasks(loaded, config.task_names, **options), None
    if config.adapter:
        with loaded.model.disable_adapter():
            before = run_tasks(loaded, config.task_names, **options)
    return _Utility(task_entries(after, before), task_rows(after), mmlu_average(after))


def _load(config: EvaluateConfig, name: str) -> LoadedModel:
    options = {"dtype": config.dtype, "device": config.device, "trust_remote_code": config.trust_remote_code}
    return load_shared(name, current(), **options) if config.shard_base else load_model(name, **options)


def _join(loaded: LoadedModel, suite: Suite, config: EvaluateConfig, reporter: Reporter) -> Join:
    """The benchmark's own join, or the one that fits the model."""
    if suite.join is not None:
        return suite.join
    examples = [row for rows in suite.sets if rows.name in ("forget", "retain") for row in rows.examples]
    report = measure_join(loaded, examples, style=config.join)
    reporter.say(f"join: {report}")
    return report.join


def _settings(
    config: EvaluateConfig, loaded: LoadedModel, join: Join, suite: Suite, measurement: Measurement
) -> dict[str, Any]:
    """How the numbers were made."""
    found: dict[str, Any] = {
        "split": suite.split,
        "max_new_tokens": config.max_new_tokens,
        "dtype": str(loaded.dtype)[6:],
        "join": str(join),
    }
    if measurement.cut_to is not None:
        found["membership_tokens"] = measurement.cut_to
    if config.samples:
        found |= {"samples": config.samples, "temperature": config.temperature, "seed": config.seed}
    if config.tasks:
        found |= {"tasks": config.tasks, "limit": config.limit}
    return found
