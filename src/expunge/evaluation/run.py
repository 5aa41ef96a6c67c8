"""`expunge evaluate` and `expunge score`: from a model, or from stored predictions, to a results file."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from expunge.config import EvaluateConfig
from expunge.data.tokenize import PromptFormat
from expunge.errors import ConfigError, ModelError, RunError
from expunge.evaluation.assemble import STAND_IN, assemble
from expunge.evaluation.benchmarks import BENCHMARKS, semeval
from expunge.evaluation.checks import (
    check_attacks,
    check_bits,
    check_computed,
    check_output,
    check_place,
    check_predictions,
    check_reference,
    check_same_rows,
    compared_with,
    mismatches,
    resolved,
)
from expunge.evaluation.earlier import as_given
from expunge.evaluation.measurement import Measurement
from expunge.evaluation.metrics.registry import left_out
from expunge.evaluation.paired import Table, changes
from expunge.evaluation.passes import Options, measure
from expunge.evaluation.predictions import Predictions, read_any, read_mmlu, write_predictions
from expunge.evaluation.results import before_path, other_subject, read_results, results_before
from expunge.evaluation.suite import (
    Suite,
    reported,
    texts_fingerprints,
    with_facts,
    with_families,
    write_key_words,
)
from expunge.evaluation.utility import check_tasks, mmlu_of, run_tasks, task_entries
from expunge.evaluation.values_file import check_values_file, read_values_file, values_path, write_values
from expunge.model.device import pick_device
from expunge.model.flat_adapter import round_once
from expunge.model.load import LoadedModel, load_model, load_shared
from expunge.model.prompt_format import measure_prompt_format
from expunge.model.saved import attach_adapter
from expunge.model.source import adapter_folder
from expunge.runs.manifest import known_base, model_fingerprint
from expunge.runs.reads import check_unchanged, model_state
from expunge.runs.record import VERDICT, adapter_fingerprint, merged_from
from expunge.utils import coarse
from expunge.utils.distributed import Processes, current, together
from expunge.utils.files import transaction, write_json
from expunge.utils.keys import keyed
from expunge.utils.progress import Reporter


def evaluate(config: EvaluateConfig, reporter: Reporter | None = None) -> dict[str, Any]:
    """Measure a model, with an adapter on it or not, and write the results and the values of every row.

    Args:
        config: The settings; with `run`, what is not set is taken from that run.
        reporter: Where progress goes; warnings alone when None.

    Returns:
        The content of the results file.

    Raises:
        UserError: The input or a setting is at fault; nothing has been written then.
    """
    reporter = reporter or Reporter(quiet=True)
    config = resolved(config)
    config.validate()
    check_attacks(config)
    with together(lambda: pick_device(config.device)) as processes:
        return _evaluate(config, reporter, processes)


def _evaluate(config: EvaluateConfig, reporter: Reporter, processes: Processes) -> dict[str, Any]:
    check_bits(config)
    _check_files(config)
    mmlu = read_mmlu(config.mmlu) if config.mmlu else None
    adapter = adapter_folder(config.adapter).resolve() if config.adapter else None
    files_before, scored = model_state(config.model), adapter_fingerprint(adapter) if adapter else None
    with reporter.working("reading the texts"):
        suite = _suite(config, adapter)
    if config.tasks:
        check_tasks(config.task_names, config.task_path)
    with reporter.working("hashing the model"):
        base = known_base(config.model) if config.run else None
    _measures_untouched(config, suite, base, _given_format(suite, config))
    compared, flag = compared_with(config)
    if compared:
        with reporter.working("looking at the model to compare with"):
            check_reference(config, suite, base)
        reporter.say(f"{flag.removeprefix('--')}: {compared}")
    with reporter.working("loading the model"):
        loaded = _load(config, config.model)
        base = base or known_base(config.model, getattr(loaded.base.config, "_commit_hash", None))
        check_unchanged(files_before, config.model)
        for mismatch in mismatches(adapter.parent, config, base, suite, loaded.tokenizer) if adapter else ():
            reporter.warn(mismatch)
    with reporter.working("measuring the prompt format"):
        prompt_format = _prompt_format(loaded, suite, config, reporter)
    before_too = _measures_untouched(config, suite, base, prompt_format)
    measurement, reference, untouched = _measure(loaded, suite, prompt_format, config, reporter, before_too=before_too)
    measurement.mmlu = mmlu
    task_rows = _add_utility(loaded, config, measurement, untouched, reporter)
    with reporter.working("hashing the model"):
        base = base or model_fingerprint(config.model)
        subject = {
            "base": base,
            "prompt_format": str(prompt_format),
            "texts": texts_fingerprints(suite),
            "merged": merged_from(config.model, base),
            "adapter": scored,
        }
    if adapter and adapter_fingerprint(adapter) != scored:
        raise ModelError(f"--adapter {config.adapter}: was changed while it was scored: evaluate again")

    def results_of(measured: Measurement, adapter: Path | None) -> dict[str, Any]:
        return assemble(
            config.chosen_benchmark,
            suite,
            measured,
            reference=reference,
            reference_name=compared,
            reference_kind="retrained" if config.reference else "origin",
            model=config.model,
            adapter=config.adapter if adapter else None,
            settings=_settings(config, loaded, prompt_format, suite, measured),
            fingerprint=subject if adapter else subject | {"adapter": None},
        )

    with reporter.working("intervals"):
        results = results_of(measurement, adapter)
        before = None if untouched is None else results_of(untouched, None)
    table = measurement.table
    earlier = untouched.table if untouched else _earlier(config, results)
    if reference:
        check_computed(config, reference.table, {"unlearned": table, "untouched": earlier})
    results["before"] = None if earlier is None else changes(results["metrics"], earlier, table)
    if processes.index == 0:  # the first one writes
        _write(config, results, {**table, **task_rows}, before, earlier)
        if config.keep_predictions:
            said = semeval.predictions_of(measurement, suite)
            write_predictions(config.keep_predictions, said, overwrite=config.overwrite)
        if config.key_words:
            write_key_words(config.key_words, suite["forget"].examples)
    return results


def _check_files(config: EvaluateConfig) -> None:
    """Refuse what could not be written at the end, or must not be replaced.

    Raises:
        RunError: So.
    """
    check_output(config.output, overwrite=config.overwrite)
    if config.keep_predictions:
        check_predictions(config.keep_predictions, overwrite=config.overwrite)
    if config.key_words:
        if Path(config.key_words).exists():  # what a user has mended is never replaced
            raise RunError(f"--key-words {config.key_words}: exists already: give another name")
        check_place(f"--key-words {config.key_words}", Path(config.key_words).parent)
    keyed()  # which makes the key of hashes, or says why there can be none


def _suite(config: EvaluateConfig, adapter: Path | None) -> Suite:
    """What is to be measured, without the texts that steered the adapter.

    Raises:
        DataError: It cannot be read, or no membership text is left.
    """
    suite = with_facts(with_families(BENCHMARKS[config.chosen_benchmark].read(config)))
    return reported(suite, adapter.parent) if adapter else suite


def _measure(
    loaded: LoadedModel,
    suite: Suite,
    prompt_format: PromptFormat,
    config: EvaluateConfig,
    reporter: Reporter,
    *,
    before_too: bool,
) -> tuple[Measurement, Measurement | None, Measurement | None]:
    """What is measured of the model, of the one that it is compared with, and of the untouched one if need be."""
    options = Options(config.max_new_tokens, config.attack_names, config.samples, config.temperature, config.seed)
    passes = partial(measure, suite=suite, prompt_format=prompt_format, options=options, reporter=reporter)
    reference = untouched = None
    if compared := compared_with(config)[0]:
        with reporter.working("loading the model to compare with"):
            other = _load(config, compared)
        reference = passes(other)
        del other  # its memory is needed
    if before_too:
        reporter.say("the untouched model, for what changed")
        untouched = passes(loaded, reference=reference)
    if config.adapter:
        with reporter.working("putting the adapter in"):
            attach_adapter(loaded, config.adapter)
            if loaded.device.type == "cuda":
                round_once(loaded)
    return passes(loaded, reference=reference), reference, untouched


def _write(
    config: EvaluateConfig,
    results: dict[str, Any],
    table: Table,
    before: dict[str, Any] | None,
    earlier: Table | None,
) -> None:
    """Results and values, and those of the untouched model where it was measured, at one commit point."""
    folder = Path(config.output).parent
    if (folder / "manifest.json").is_file():
        (folder / VERDICT).unlink(missing_ok=True)
    with transaction(folder):
        if before is not None and earlier is not None:
            beside = before_path(config.output)
            write_values(values_path(beside), earlier, overwrite=config.overwrite)
            write_json(beside, before, overwrite=config.overwrite)
        write_values(values_path(config.output), table, overwrite=config.overwrite)
        write_json(config.output, results, overwrite=config.overwrite)


def _measures_untouched(
    config: EvaluateConfig, suite: Suite, base: str | None, prompt_format: PromptFormat | None
) -> bool:
    """Whether the untouched model is measured too: where no results of it, made alike, lie beside those of the run.

    Raises:
        RunError: Those that lie there are of something else, and `overwrite` is off.
    """
    beside = before_path(config.output)
    if not config.run or beside.name == Path(config.output).name:
        return False
    if beside.exists():
        before = read_results(beside)
        subject = {"base": base, "prompt_format": prompt_format and str(prompt_format), "data": suite.fingerprints()}
        others = other_subject(before, {"fingerprint": subject})
        others += ["benchmark"] if before["benchmark"] != config.benchmark else []
        others += ["adapter"] if before.get("adapter") else []
        made = before.get("settings") or {}
        others += ["weights in 4 bits or not"] if made.get("load_in_4bit", False) != bool(config.load_in_4bit) else []
        others += [
            name.replace("_", " ") for name, value in _answering(config).items() if made and made.get(name) != value
        ]
        if not others:
            return False
        if not config.overwrite:
            raise RunError(
                f"{beside}: is of something else than what is measured now ({', '.join(others)}): give --overwrite to "
                "measure the untouched model again, or an --output in another folder"
            )
    check_values_file(values_path(beside), overwrite=config.overwrite)
    return True


def _earlier(config: EvaluateConfig, results: Mapping[str, Any]) -> Table | None:
    """What was measured on the untouched model before, beside the results, where it is of the same model and data."""
    before = results_before(config.output, results["benchmark"]) if config.adapter else None
    values = values_path(before_path(config.output))
    if before is None or not values.is_file() or other_subject(before, results):
        return None
    return read_values_file(values)


def score_predictions(
    predictions: str,
    output: str,
    *,
    mmlu: str | None = None,
    data: str | None = None,
    split: str | None = None,
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
    if split and not data:
        raise ConfigError(f"--split {split}: says nothing without --data, the benchmark's folder")
    check_output(output, overwrite=overwrite)
    accuracy = read_mmlu(mmlu) if mmlu else None
    found: Predictions = read_any(predictions)
    if data:
        check_same_rows(predictions, found, data, split)
    suite, measurement = semeval.suite_of_predictions(found)
    measurement.mmlu = accuracy
    results = assemble("semeval", suite, measurement)
    only = "Only what stored texts and losses tell was measured (expunge score)."
    results["not_measured"] = [STAND_IN, only, *semeval.notes(measurement, suite)]
    write_json(output, results, overwrite=overwrite)
    return results


def _add_utility(
    loaded: LoadedModel,
    config: EvaluateConfig,
    measurement: Measurement,
    untouched: Measurement | None,
    reporter: Reporter,
) -> Table:
    """Run the utility tasks on the model and, under an adapter, on the untouched one, and add what they say of these.

    Returns:
        The values of the model's rows.
    """
    if not config.tasks:
        return {}
    run = partial(run_tasks, loaded, config.task_names, task_path=config.task_path, limit=config.limit)
    reporter.say(f"utility tasks: {', '.join(config.task_names)}")
    after, before = run(), None
    if config.adapter:
        with loaded.adapter_off():
            before = run()
    measurement.utility = task_entries(after, before)
    measurement.mmlu = mmlu_of(after) if measurement.mmlu is None else measurement.mmlu
    if untouched and before:
        untouched.utility, untouched.mmlu = task_entries(before), mmlu_of(before)
    return after


def _load(config: EvaluateConfig, name: str) -> LoadedModel:
    options: dict[str, Any] = {
        "dtype": config.dtype,
        "device": config.device,
        "trust_remote_code": config.trust_remote_code,
        "revision": config.revision if name == config.model else None,
    }
    if config.shard_base:
        return load_shared(name, current(), **options)
    return load_model(name, load_in_4bit=bool(config.load_in_4bit), **options)


def _given_format(suite: Suite, config: EvaluateConfig) -> PromptFormat | None:
    """The benchmark's own prompt format, or the run's; None where it is to be measured."""
    if suite.prompt_format is not None:
        return suite.prompt_format
    measured = "auto" in (config.prompt_format, config.end_of_text)
    return None if measured else PromptFormat(config.prompt_format, config.end_of_text == "yes")


def _prompt_format(loaded: LoadedModel, suite: Suite, config: EvaluateConfig, reporter: Reporter) -> PromptFormat:
    """The benchmark's own prompt format, the run's, or the one that fits the model."""
    given = _given_format(suite, config)
    if given is not None:
        if suite.prompt_format is None:
            reporter.say(f"prompt format: {given}, as given")
        return given
    examples = [row for rows in suite.sets if rows.name in ("forget", "retain") for row in as_given(rows.examples)]
    report = measure_prompt_format(loaded, examples, style=config.prompt_format, end_of_text=config.end_of_text)
    reporter.say(f"prompt format: {report}")
    return report.chosen


def _answering(config: EvaluateConfig) -> dict[str, Any]:
    """How prompts are answered: with other settings another number comes out, or none."""
    drawn = {"samples": config.samples, "temperature": config.temperature, "seed": config.seed}
    return {"max_new_tokens": config.max_new_tokens, **(drawn if config.samples else {})}


def _settings(
    config: EvaluateConfig, loaded: LoadedModel, prompt_format: PromptFormat, suite: Suite, measurement: Measurement
) -> dict[str, Any]:
    """How the numbers were made."""
    found: dict[str, Any] = {
        "split": suite.split,
        "dtype": str(loaded.dtype)[6:],
        "load_in_4bit": bool(config.load_in_4bit),
        "prompt_format": str(prompt_format),
        **_answering(config),
    }
    if measurement.cut_to is not None:
        documents = suite.documents
        sides = {"members": len(documents.members), "others": len(documents.nonmembers)} if documents else {}
        found["membership_tokens"] = coarse.tokens(measurement.cut_to) if coarse.few(sides) else measurement.cut_to
    if config.attacks:
        found["attacks_left_out"] = left_out(config.attack_names)
    if config.tasks:
        found |= {"tasks": config.tasks, "limit": config.limit}
    return found
